package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/centrifugal/protocol"
	"github.com/gorilla/websocket"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// channels is a stand-in for Centrifugo: channels of one server, each with a rising offset.
type channels struct {
	t     *testing.T
	fault fault

	mutex       sync.Mutex
	subscribers map[string][]*websocket.Conn
	offsets     map[string]uint64
	ponged      int
}

func startChannels(t *testing.T, fault fault) (c *channels, target string) {
	t.Helper()
	c = &channels{t: t, fault: fault, subscribers: map[string][]*websocket.Conn{}, offsets: map[string]uint64{}}
	server := httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(server.Close)
	return c, strings.TrimPrefix(server.URL, "http://")
}

func (c *channels) serve(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{Subprotocols: []string{"centrifuge-protobuf"}}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		c.mutex.Lock()
		for decoder := protocol.NewProtobufCommandDecoder(message); ; {
			command, err := decoder.Decode()
			if command != nil {
				c.take(conn, command)
			}
			if err != nil {
				break
			}
		}
		c.mutex.Unlock()
	}
}

func (c *channels) take(conn *websocket.Conn, command *protocol.Command) {
	switch {
	case command.Connect != nil:
		c.push(conn, &protocol.Reply{Id: command.Id, Connect: &protocol.ConnectResult{Pong: true}})
		c.push(conn, &protocol.Reply{}) // a ping
	case command.Subscribe != nil:
		channel := command.Subscribe.Channel
		c.subscribers[channel] = append(c.subscribers[channel], conn)
		c.push(conn, &protocol.Reply{Id: command.Id, Subscribe: &protocol.SubscribeResult{Offset: c.offsets[channel]}})
	case command.Publish != nil:
		c.publish(conn, command)
	default:
		c.ponged++
	}
}

func (c *channels) publish(conn *websocket.Conn, command *protocol.Command) {
	channel := command.Publish.Channel
	fault := none
	if c.offsets[channel]+1 == faultySeq {
		fault = c.fault
	}
	if fault == refuse {
		c.push(conn, &protocol.Reply{Id: command.Id, Error: &protocol.Error{Code: 111, Message: "too many requests"}})
		return
	}
	c.offsets[channel]++
	for i, subscriber := range c.subscribers[channel] {
		publication := &protocol.Publication{Offset: c.offsets[channel], Data: command.Publish.Data}
		if fault == loseEvent && i == 0 {
			continue
		}
		if fault == wrongSeq && i == 0 {
			publication.Offset += 3
		}
		c.push(subscriber, &protocol.Reply{Push: &protocol.Push{Channel: channel, Pub: publication}})
	}
	c.push(conn, &protocol.Reply{Id: command.Id, Publish: &protocol.PublishResult{}})
}

func (c *channels) pongs() int {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.ponged
}

func (c *channels) push(conn *websocket.Conn, reply *protocol.Reply) {
	encoded, err := protocol.NewProtobufReplyEncoder().Encode(reply)
	if err != nil {
		c.t.Error(err)
	}
	frames := protocol.NewProtobufDataEncoder()
	if err := frames.Encode(encoded); err != nil {
		c.t.Error(err)
	}
	_ = conn.WriteMessage(websocket.BinaryMessage, frames.Finish())
}

func ofCentrifugo(target string, accounts int) options {
	o := someOptions(target, accounts)
	o.peer = centrifugo
	return o
}

func TestCentrifugoIsLoadedWithTheSameShapes(t *testing.T) {
	for _, shape := range []shape{independent, batched} {
		channels, target := startChannels(t, none)
		options := ofCentrifugo(target, 10)
		options.shape = shape
		report, err := newRun(options).perform(func(r *run) (*report, error) { return r.fanout(2, 5, 4) })
		if err != nil {
			t.Fatal(err)
		}
		if want := uint64(2 * 4 * 39); report.Count != want {
			t.Errorf("%s: %d deliveries counted instead of %d", shape, report.Count, want)
		}
		for deadline := time.Now().Add(10 * time.Second); channels.pongs() < 10 && time.Now().Before(deadline); {
			time.Sleep(pollInterval)
		}
		if pongs := channels.pongs(); pongs != 10 {
			t.Errorf("%s: %d of 10 pings were answered, or something else was sent", shape, pongs)
		}
	}
}

func TestWhatIsWrongWithCentrifugoFailsTheRun(t *testing.T) {
	for fault, want := range map[fault]string{
		loseEvent: "a hole or a repetition", wrongSeq: "a hole or a repetition", refuse: "too many requests",
	} {
		_, target := startChannels(t, fault)
		_, err := newRun(ofCentrifugo(target, 4)).perform(func(r *run) (*report, error) { return r.pairs(2, 4) })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q was not found: %v", want, err)
		}
	}
}

func TestAnAnswerWithoutASeqIsAPeersOnly(t *testing.T) {
	r := newRun(someOptions("", 2))
	group := r.newGroup(0, 2, 1)
	group.sender().sending.sentAt = append(group.sender().sending.sentAt, 0)
	if err := group.sender().sent(firstSendRequest, &pb.SendResult{ChatId: "d.x"}, 0); err == nil || !strings.Contains(err.Error(), "without its seq") {
		t.Errorf("not found: %v", err)
	}
}
