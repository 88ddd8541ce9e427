// Command loadgen loads a chatgrpc server, the nodes of a cluster, or the echo server beside which they are measured, as many devices
// would, checks every answer, and prints what it measured as one JSON object. benchmarks/run.py starts it; docs/benchmarks.md explains the figures.
//
// It is also a complete small client in another language: everything it knows of the server stands in the protos.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := execute(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "loadgen: %v\n", err)
		os.Exit(1)
	}
}

const usage = `loadgen MODE [flags]; the modes are
  pairs      --streams/2 pairs of users, one of each sends to the other
  fanout     --groups groups with --streams/--groups members, one of each sends
  replay     --devices devices, one after the other, read a backlog of --messages
  idle       --streams silent streams
  echo       --streams streams to the echo server
  echo-idle  --streams silent streams to the echo server
Of several targets the members of a chat are at one after the other: the two of a pair are at different ones.
`

func execute(arguments []string) error {
	flags := flag.NewFlagSet("loadgen", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	var (
		targets  = flags.String("targets", "127.0.0.1:15551", "addresses of the servers, with commas between them")
		pids     pidsFlag
		services servicesFlag
		tokens   = flags.String("tokens", "", "file with a user id, a space and their token on each line")
		streams  = flags.Int("streams", 100, "streams in all")
		groups   = flags.Int("groups", 4, "groups")
		window   = flags.Uint("window", 1, "messages of a sender that may be incomplete; in the shape batched, unanswered")
		form     = flags.String("shape", string(independent), "when senders send: independent, one message as soon as one is complete; "+
			"or batched, as many as the window takes with each batch of answers")
		other    = flags.String("peer", "", "load this server instead of chatgrpc: "+string(centrifugo))
		rate     = flags.Float64("rate", 0, "messages a second of all senders together, at random times (Poisson), whatever is complete; 0 = as the window has it")
		ackDelay = flags.Duration("ack-delay", 0, "longest wait before a device acknowledges what came; 0 = each batch at once")
		messages = flags.Uint("messages", 0, "messages of each sender, instead of a time; the backlog of replay")
		devices  = flags.Int("devices", 5, "devices that read the backlog")
		warmup   = flags.Duration("warmup", 2*time.Second, "time before measuring")
		duration = flags.Duration("duration", 8*time.Second, "time of measuring")
	)
	flags.Var(&pids, "server-pids", "processes whose CPU and memory are read, with commas between them")
	flags.Var(&services, "service-pids", "further processes whose CPU is told beside it, as name=pid,…; those of one name are added up")
	if len(arguments) == 0 || strings.HasPrefix(arguments[0], "-") {
		flags.Usage()
		return fmt.Errorf("the first argument is the mode")
	}
	mode := arguments[0]
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}
	options := options{
		targets: strings.Split(*targets, ","), serverPIDs: pids, services: services,
		warmup: *warmup, duration: *duration, messages: uint32(*messages), patience: 60 * time.Second,
		peer: peer(*other), shape: shape(*form), ackDelay: *ackDelay,
	}
	if options.peer != "" && (options.peer != centrifugo || mode != "pairs" && mode != "fanout") {
		return fmt.Errorf("--peer is %s, with pairs or fanout", centrifugo)
	}
	if options.shape != independent && options.shape != batched {
		return fmt.Errorf("there is no shape %q; there are independent and batched", *form)
	}
	if *rate != 0 && options.shape != independent {
		return fmt.Errorf("--rate is for the shape independent")
	}
	if senders := map[string]int{"pairs": *streams / 2, "fanout": *groups}[mode]; senders > 0 {
		options.ratePerS = *rate / float64(senders)
	}
	if *tokens != "" {
		var err error
		if options.accounts, err = readAccounts(*tokens); err != nil {
			return err
		}
	}
	if needed := map[string]int{"pairs": *streams, "fanout": *streams, "replay": 2, "idle": *streams}[mode]; len(options.accounts) < needed {
		return fmt.Errorf("%s needs %d accounts; --tokens has %d", mode, needed, len(options.accounts))
	}
	modes := map[string]func(*run) (*report, error){
		"pairs":     func(r *run) (*report, error) { return r.pairs(*streams/2, uint32(*window)) },
		"fanout":    func(r *run) (*report, error) { return r.fanout(*groups, *streams / *groups, uint32(*window)) },
		"replay":    func(r *run) (*report, error) { return r.replay(options.messages, *devices) },
		"idle":      func(r *run) (*report, error) { return r.idle(*streams) },
		"echo":      func(r *run) (*report, error) { return r.echo(*streams, uint64(*window)) },
		"echo-idle": func(r *run) (*report, error) { return r.echoIdle(*streams) },
	}
	perform := modes[mode]
	if perform == nil {
		flags.Usage()
		return fmt.Errorf("there is no mode %q", mode)
	}
	result, err := newRun(options).perform(perform)
	if err != nil {
		return err
	}
	result.Mode = mode
	return json.NewEncoder(os.Stdout).Encode(result)
}

// readAccounts reads a file of lines with a user id, a space and the token.
func readAccounts(path string) ([]account, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var accounts []account
	for lines := bufio.NewScanner(file); lines.Scan(); {
		user, token, found := strings.Cut(lines.Text(), " ")
		if !found {
			return nil, fmt.Errorf("%s:%d: no token", path, len(accounts)+1)
		}
		accounts = append(accounts, account{user: user, token: token})
	}
	return accounts, nil
}

// pidsFlag reads process ids with commas between them.
type pidsFlag []int

func (p *pidsFlag) String() string { return strings.Trim(fmt.Sprint([]int(*p)), "[]") }

func (p *pidsFlag) Set(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		pid, err := strconv.Atoi(part)
		if err != nil {
			return err
		}
		*p = append(*p, pid)
	}
	return nil
}

// servicesFlag reads name=pid with commas between them; a name may stand several times.
type servicesFlag map[string][]int

func (s *servicesFlag) String() string { return fmt.Sprint(map[string][]int(*s)) }

func (s *servicesFlag) Set(text string) error {
	if *s == nil {
		*s = servicesFlag{}
	}
	for part := range strings.SplitSeq(text, ",") {
		name, id, _ := strings.Cut(part, "=")
		pid, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		(*s)[name] = append((*s)[name], pid)
	}
	return nil
}
