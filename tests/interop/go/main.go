// Command interop is a client on grpc-go: it runs the cases of tests/interop/test_interop.py, and prints what it saw of each.
//
//	interop ADDRESS ACCOUNTS [CA]
//
// ACCOUNTS is a file with a user and a token on each line; with CA, certificates to trust, it speaks TLS. The other folders have
// the same program on other libraries.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

const (
	text = "Grüße, 世界 👋"
	wait = 30 * time.Second
)

// facts are what a case saw.
type facts map[string]any

// and adds others to them.
func (f facts) and(others facts) facts {
	for name, value := range others {
		f[name] = value
	}
	return f
}

// account is a user, and the token that proves it.
type account struct{ user, token string }

// authorized returns the context of a call that the user makes.
func (a account) authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.token)
}

// place is the server, one connection to it, and users who have not been there yet.
type place struct {
	conn     *grpc.ClientConn
	dials    atomic.Int32
	accounts []account
	isTLS    bool
}

func (p *place) messages() pb.MessageServiceClient { return pb.NewMessageServiceClient(p.conn) }

// account returns a user of the case's own.
func (p *place) account() account {
	next := p.accounts[0]
	p.accounts = p.accounts[1:]
	return next
}

// untilStreams waits until the server has so many streams; it returns how many it says.
func (p *place) untilStreams(ctx context.Context, number uint32) uint32 {
	for giveUpAt := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		reply, err := pb.NewNodeServiceClient(p.conn).ListNodes(ctx, &pb.ListNodesRequest{})
		check(err)
		if streams := reply.Nodes[0].Streams; streams == number || time.Now().After(giveUpAt) {
			return streams
		}
	}
}

// check panics with an error, if it is one: what goes wrong in a case is its result.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

// run runs a case, and prints its result.
func run(p *place, name string, of func(context.Context, *place) facts) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	seen := func() (seen facts) {
		defer func() {
			if wrong := recover(); wrong != nil {
				seen = facts{"failed": fmt.Sprint(wrong)}
			}
		}()
		return of(ctx, p)
	}()
	fmt.Println(string(must(json.Marshal(seen.and(facts{"case": name})))))
}

func newPlace(address, accountsFile, caFile string) *place {
	p := &place{isTLS: caFile != ""}
	for line := range strings.Lines(string(must(os.ReadFile(accountsFile)))) {
		user, token, _ := strings.Cut(strings.TrimSpace(line), " ")
		p.accounts = append(p.accounts, account{user, token})
	}
	security := insecure.NewCredentials()
	if p.isTLS {
		security = must(credentials.NewClientTLSFromFile(caFile, ""))
	}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			p.dials.Add(1)
		}
		return conn, err
	}
	p.conn = must(grpc.NewClient(address, grpc.WithTransportCredentials(security), grpc.WithContextDialer(dial)))
	return p
}

func main() {
	if len(os.Args) < 3 {
		check(errors.New("usage: interop ADDRESS ACCOUNTS [CA]"))
	}
	p := newPlace(os.Args[1], os.Args[2], strings.Join(os.Args[3:], ""))
	for _, one := range cases {
		run(p, one.name, one.run)
	}
}
