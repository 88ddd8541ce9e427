package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
)

func someOptions(target string, accounts int) options {
	o := options{targets: []string{target}, messages: 40, duration: time.Second, patience: 30 * time.Second, shape: independent}
	for i := range accounts {
		user := fmt.Sprintf("user-%d", i)
		o.accounts = append(o.accounts, account{user: user, token: user})
	}
	return o
}

func TestPairsDeliverEveryMessage(t *testing.T) {
	report, err := newRun(someOptions(startStandIn(t, none), 6)).perform(func(r *run) (*report, error) { return r.pairs(3, 4) })
	if err != nil {
		t.Fatal(err)
	}
	// The first message of each chat is sent before the measuring.
	if want := uint64(3 * 39); report.Count != want {
		t.Errorf("%d messages counted instead of %d", report.Count, want)
	}
	if report.P50Ms == nil || report.P99Ms == nil || *report.P50Ms > *report.P99Ms || report.AnswerP50Ms == nil {
		t.Errorf("no latencies, or a p50 above the p99: %+v", report)
	}
}

func TestPairsByTimeDrainWhatIsUnderWay(t *testing.T) {
	options := someOptions(startStandIn(t, none), 4)
	options.messages, options.duration = 0, 100*time.Millisecond
	report, err := newRun(options).perform(func(r *run) (*report, error) { return r.pairs(2, 8) })
	if err != nil {
		t.Fatal(err)
	}
	if report.Count == 0 || report.Seconds < 0.1 {
		t.Errorf("%d messages in %v s", report.Count, report.Seconds)
	}
}

func TestFanoutCountsDeliveriesToTheOthers(t *testing.T) {
	report, err := newRun(someOptions(startStandIn(t, none), 10)).perform(func(r *run) (*report, error) { return r.fanout(2, 5, 4) })
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(2 * 4 * 39); report.Count != want {
		t.Errorf("%d deliveries counted instead of %d", report.Count, want)
	}
}

func TestReplayReadsTheBacklogOnEachDevice(t *testing.T) {
	report, err := newRun(someOptions(startStandIn(t, none), 2)).perform(func(r *run) (*report, error) { return r.replay(500, 3) })
	if err != nil {
		t.Fatal(err)
	}
	if report.Count != 1500 {
		t.Errorf("%d messages counted instead of 1500", report.Count)
	}
}

func TestMembersOfAChatAreAtOneServerAfterTheOther(t *testing.T) {
	const pairs, groups, size = 4, 3, 5
	cases := map[string]struct {
		mode    func(*run) (*report, error)
		servers []int // of user 0, 1, 2, …
	}{
		"pairs":  {func(r *run) (*report, error) { return r.pairs(pairs, 4) }, []int{0, 1, 1, 2, 2, 0, 0, 1}},
		"fanout": {func(r *run) (*report, error) { return r.fanout(groups, size, 4) }, []int{0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 2, 0, 1, 2, 0}},
		"replay": {func(r *run) (*report, error) { return r.replay(40, 4) }, []int{0}},
		"idle":   {func(r *run) (*report, error) { return r.idle(21) }, []int{0, 1, 2, 0}},
	}
	for mode, c := range cases {
		t.Run(mode, func(t *testing.T) {
			standIn, targets := startStandInOn(t, none, 3)
			options := someOptions("", 21)
			options.targets = targets
			if _, err := newRun(options).perform(c.mode); err != nil {
				t.Fatal(err)
			}
			for i, server := range c.servers {
				for _, call := range standIn.calls[fmt.Sprintf("user-%d", i)] {
					if call != targets[server] {
						t.Errorf("user %d called server %d, not %d", i, slices.Index(targets, call), server)
					}
				}
			}
			if mode == "replay" && !slices.Equal(standIn.calls["user-1"], []string{targets[1], targets[2], targets[0], targets[1]}) {
				t.Errorf("the readers called %v of %v", standIn.calls["user-1"], targets)
			}
		})
	}
}

func TestIdleWeighsTheServer(t *testing.T) {
	// What earlier tests left is given back now, and nothing while it is weighed: else this process may shrink meanwhile.
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	options := someOptions(startStandIn(t, none), 60)
	options.serverPIDs = []int{os.Getpid()}
	report, err := newRun(options).perform(func(r *run) (*report, error) { return r.idle(60) })
	if err != nil {
		t.Fatal(err)
	}
	// Server and client are this process; both ends of a stream with its connection take far more than 1 KiB.
	if report.Count != 40 || report.KBPerStream == nil || *report.KBPerStream < 1 {
		t.Errorf("%d streams counted in %+v", report.Count, report)
	}
}

func TestEachBrokenPromiseFailsTheRun(t *testing.T) {
	cases := map[fault]string{
		loseEvent:       "a hole or a repetition",
		repeatEvent:     "a hole or a repetition",
		swapEvents:      "came when message",
		wrongSeq:        "two orders",
		wrongChat:       "cross-talk",
		markDuplicate:   "called a duplicate",
		forgetAnswer:    "the answer to request",
		refuse:          "ERROR_CODE_RATE_LIMITED",
		changeText:      "a text that nobody sent",
		hangUp:          "the stream ended",
		welcomeStranger: "no Welcome to this user's Hello",
	}
	for fault, want := range cases {
		t.Run(string(fault), func(t *testing.T) {
			_, err := newRun(someOptions(startStandIn(t, fault), 4)).perform(func(r *run) (*report, error) { return r.pairs(2, 4) })
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q was not found: %v", want, err)
			}
		})
	}
}

func TestLossAtTheEndFailsTheRun(t *testing.T) {
	// The last message of the run: no later one shows the hole.
	for _, fault := range []fault{loseEvent, forgetAnswer} {
		options := someOptions(startStandIn(t, fault), 4)
		options.messages = faultySeq - 1
		options.duration, options.patience = 0, time.Second
		_, err := newRun(options).perform(func(r *run) (*report, error) { return r.pairs(2, 1) })
		if err == nil || !strings.Contains(err.Error(), "in vain") || !strings.Contains(err.Error(), "6 sent") {
			t.Errorf("%s, as the last one, was not found: %v", fault, err)
		}
	}
}

func TestSyncCompleteBeforeTheBacklogFailsTheRun(t *testing.T) {
	_, err := newRun(someOptions(startStandIn(t, syncTooSoon), 2)).perform(func(r *run) (*report, error) { return r.replay(20, 1) })
	if err == nil || !strings.Contains(err.Error(), "SyncComplete came after 0 of 20") {
		t.Errorf("not found: %v", err)
	}
}

func TestEchoComparesWhatCameBack(t *testing.T) {
	for altered, want := range map[bool]string{false: "", true: "other bytes"} {
		options := someOptions(startEcho(t, altered), 0)
		report, err := newRun(options).perform(func(r *run) (*report, error) { return r.echo(3, 4) })
		switch {
		case want == "" && (err != nil || report.Count != 3*39):
			t.Errorf("a faithful echo: %+v, %v", report, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("an altered echo was not found: %v", err)
		}
	}
}

func startEcho(t *testing.T, altered bool) (target string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echo := func(_ any, stream grpc.ServerStream) error {
		for count := 0; ; count++ {
			var message []byte
			if err := stream.RecvMsg(&message); err != nil {
				return nil
			}
			if altered && count == 5 {
				message = message[1:]
			}
			if err := stream.SendMsg(&message); err != nil {
				return nil
			}
		}
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(echo), grpc.ForceServerCodecV2(rawCodec{}))
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	var many samples
	for ms := 1; ms <= 200; ms++ {
		many.add(time.Duration(ms) * time.Millisecond)
	}
	cases := []struct {
		samples samples
		share   float64
		want    float64
	}{
		{samples{7000}, 0.5, 7}, {samples{7000}, 0.99, 7},
		{samples{1000, 2000}, 0.5, 1}, {samples{1000, 2000}, 0.51, 2},
		{many, 0.5, 100}, {many, 0.99, 198}, {many, 1, 200}, {many, 0, 1},
	}
	for _, c := range cases {
		if got := c.samples.percentileMs(c.share); *got != c.want {
			t.Errorf("percentile %v of %d samples is %v, not %v", c.share, len(c.samples), *got, c.want)
		}
	}
	if got := (samples{}).percentileMs(0.5); got != nil {
		t.Errorf("a percentile of nothing: %v", *got)
	}
}

func TestSamplesAreJoinedSortedAndCutToWhatFits(t *testing.T) {
	var late samples
	late.add(-time.Second)
	late.add(100 * time.Hour)
	if joined := join(samples{5, 1}, nil, late, samples{3}); fmt.Sprint(joined) != fmt.Sprint(samples{0, 1, 3, 5, math.MaxUint32}) {
		t.Errorf("joined to %v", joined)
	}
}

func TestCPUOfServersAndServicesIsAddedUp(t *testing.T) {
	self := os.Getpid()
	r := newRun(options{serverPIDs: []int{self, self, self}, services: map[string][]int{"once": {self}, "twice": {self, self}}})
	least := ownCPU() - 2*clockTick
	reading, err := r.reading(func() uint64 { return 0 })
	most := ownCPU() + 2*clockTick
	if err != nil {
		t.Fatal(err)
	}
	for times, seen := range map[time.Duration]time.Duration{
		3: reading.serverCPU, 1: reading.serviceCPU["once"], 2: reading.serviceCPU["twice"],
	} {
		if seen < times*least || seen > times*most {
			t.Errorf("%v is not %d times a CPU time between %v and %v", seen, times, least, most)
		}
	}
	if _, err := newRun(options{serverPIDs: []int{self, 1 << 30}}).reading(func() uint64 { return 0 }); err == nil {
		t.Error("the CPU of a process was read that does not exist")
	}
}

func TestReadingsAreSubtractedAndSpansAdded(t *testing.T) {
	at := func(s time.Duration) measured {
		services := map[string]time.Duration{"a": 3 * s, "b": 4 * s}
		return measured{elapsed: s, count: uint64(10 * s), serverCPU: 2 * s, serviceCPU: services, ownCPU: 5 * s}
	}
	if span := at(7).since(at(4)); !reflect.DeepEqual(span, at(3)) {
		t.Errorf("from 4 to 7: %+v", span)
	}
	if sum := (measured{}).and(at(2)).and(at(3)); !reflect.DeepEqual(sum, at(5)) {
		t.Errorf("2 and 3: %+v", sum)
	}
	report := at(2 * time.Second).report()
	if report.ServerCPUS != 4 || !maps.Equal(report.ServicesCPUS, map[string]float64{"a": 6, "b": 8}) || report.LoadgenCPUS != 10 {
		t.Errorf("reported %+v", report)
	}
}

func TestPIDFlagsAreRead(t *testing.T) {
	var pids pidsFlag
	var services servicesFlag
	if err := errors.Join(pids.Set("1,22"), services.Set("a=3,b=4"), services.Set("a=5")); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(pids, services) != "[1 22] map[a:[3 5] b:[4]]" {
		t.Errorf("%v %v", pids, services)
	}
	if pids.Set("1,x") == nil || services.Set("a") == nil || services.Set("a=b") == nil {
		t.Error("something that is no process id was taken for one")
	}
}

func TestCPUOfThisProcessIsReadAlikeFromBothSources(t *testing.T) {
	for start := ownCPU(); ownCPU()-start < 50*time.Millisecond; {
	}
	fromProc, err := processCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if fromProc < 50*time.Millisecond-2*clockTick || fromProc > ownCPU()+2*clockTick {
		t.Errorf("/proc says %v, getrusage %v", fromProc, ownCPU())
	}
}
