package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// standIn is a server that keeps its chats in memory. It is here to show what the load generator's checks find: without a
// fault it does what the protos say, and with one it breaks one promise. A user's token is their user id.
type standIn struct {
	pb.UnimplementedSessionServiceServer
	pb.UnimplementedChatServiceServer
	fault fault

	mutex sync.Mutex
	chats map[string]*standInChat
	lines map[string][]*line  // open streams by user
	calls map[string][]string // by user, the address that each of their calls went to

	hold      func(seq uint64) time.Duration // if given, for how long the stand-in stands still before it takes in the message that gets this seq
	mostSends int                            // that came in one batch
	acks      map[string]int                 // by user
}

type standInChat struct {
	id      string
	members []string
	log     []*pb.ChatEvent
}

// line is one device's stream; frames wait here until its writer takes them.
type line struct {
	opened map[string]bool
	frames chan *pb.ServerFrame
}

// fault is a promise to break, once the chat has grown to a few events.
type fault string

const (
	none            fault = ""
	loseEvent       fault = "an event is not delivered"
	repeatEvent     fault = "an event is delivered twice"
	swapEvents      fault = "two texts change places on one device"
	wrongSeq        fault = "a SendResult names another seq than the event"
	wrongChat       fault = "an event goes to another pair's device"
	markDuplicate   fault = "a first send is called a duplicate"
	forgetAnswer    fault = "a send is never answered"
	refuse          fault = "a send is refused"
	changeText      fault = "a text is altered"
	hangUp          fault = "the stream ends"
	syncTooSoon     fault = "SyncComplete comes before the backlog"
	welcomeStranger fault = "the Welcome is for another user"
)

const (
	faultySeq                = 7
	standInUnacknowledgedMax = 40
)

func startStandIn(t *testing.T, fault fault) (target string) {
	t.Helper()
	_, targets := startStandInOn(t, fault, 1)
	return targets[0]
}

// startStandInOn listens at several addresses, as a cluster does.
func startStandInOn(t *testing.T, fault fault, addresses int) (s *standIn, targets []string) {
	t.Helper()
	server := grpc.NewServer()
	s = &standIn{fault: fault, chats: map[string]*standInChat{}, lines: map[string][]*line{}, calls: map[string][]string{}, acks: map[string]int{}}
	pb.RegisterSessionServiceServer(server, s)
	pb.RegisterChatServiceServer(server, s)
	for range addresses {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go server.Serve(listener)
		targets = append(targets, listener.Addr().String())
	}
	t.Cleanup(server.Stop)
	return s, targets
}

// callFrom notes a call, and returns whose it is. The stand-in must be locked.
func (s *standIn) callFrom(ctx context.Context) (user string) {
	values, _ := metadata.FromIncomingContext(ctx)
	user = values.Get("authorization")[0][len("Bearer "):]
	s.calls[user] = append(s.calls[user], values.Get(":authority")[0])
	return user
}

func (s *standIn) CreateGroup(ctx context.Context, request *pb.CreateGroupRequest) (*pb.CreateGroupResponse, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	user := s.callFrom(ctx)
	chat := s.create("g."+digest(user), append([]string{user}, request.MemberUserIds...))
	return &pb.CreateGroupResponse{Outcome: &pb.CreateGroupResponse_Chat{Chat: chat.state()}}, nil
}

func (s *standIn) Connect(stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse]) error {
	s.mutex.Lock()
	user := s.callFrom(stream.Context())
	s.mutex.Unlock()
	line := &line{opened: map[string]bool{}, frames: make(chan *pb.ServerFrame, 1<<16)}
	go line.write(stream)
	for greeted := false; ; {
		batch, err := stream.Recv()
		if err != nil {
			return nil
		}
		s.mutex.Lock()
		sends := 0
		for _, frame := range batch.Frames {
			if frame.GetSend() != nil {
				sends++
			}
			if frame.GetAck() != nil {
				s.acks[user]++
			}
			if !greeted {
				s.greet(user, line, frame.RequestId)
				greeted = true
			} else if send := frame.GetSend(); send != nil {
				if err := s.send(user, line, frame.RequestId, send); err != nil {
					s.mutex.Unlock()
					return err
				}
			}
		}
		s.mostSends = max(s.mostSends, sends)
		s.mutex.Unlock()
	}
}

func (s *standIn) greet(user string, line *line, requestID uint64) {
	named := user
	if s.fault == welcomeStranger {
		named = "someone"
	}
	welcome := &pb.Welcome{UserId: named, Limits: &pb.Limits{UnacknowledgedEventsMax: standInUnacknowledgedMax}}
	line.push(&pb.ServerFrame{RequestId: requestID, Body: &pb.ServerFrame_Welcome{Welcome: welcome}})
	done := &pb.ServerFrame{Body: &pb.ServerFrame_SyncComplete{SyncComplete: &pb.SyncComplete{}}}
	if s.fault == syncTooSoon {
		line.push(done)
	}
	for _, chat := range s.chats {
		if slices.Contains(chat.members, user) {
			for _, event := range chat.log {
				line.pushEvent(chat, event)
			}
		}
	}
	if s.fault != syncTooSoon {
		line.push(done)
	}
	s.lines[user] = append(s.lines[user], line)
}

func (s *standIn) send(user string, line *line, requestID uint64, send *pb.SendMessage) error {
	chat := s.chats[send.GetChatId()]
	if chat == nil {
		members := []string{user, send.GetUserId()}
		slices.Sort(members)
		chat = s.create("d."+digest(members...), members)
	}
	if s.hold != nil {
		time.Sleep(s.hold(uint64(len(chat.log) + 1)))
	}
	event := &pb.ChatEvent{ChatId: chat.id, Seq: uint64(len(chat.log) + 1), SenderUserId: user, Content: send.Content}
	chat.log = append(chat.log, event)
	result := &pb.SendResult{ChatId: chat.id, Seq: event.Seq}
	fault := none
	if event.Seq == faultySeq {
		fault = s.fault
	}
	switch fault {
	case hangUp:
		return fmt.Errorf("hung up")
	case wrongSeq:
		result.Seq++
	case markDuplicate:
		result.Duplicate = true
	}
	switch fault {
	case forgetAnswer:
	case refuse:
		failure := &pb.Error{Code: pb.ErrorCode_ERROR_CODE_RATE_LIMITED}
		line.push(&pb.ServerFrame{RequestId: requestID, Body: &pb.ServerFrame_Error{Error: failure}})
	default:
		line.push(&pb.ServerFrame{RequestId: requestID, Body: &pb.ServerFrame_Sent{Sent: result}})
	}
	for i, member := range chat.members {
		for _, device := range s.lines[member] {
			s.deliver(device, chat, event, fault, i == 0)
		}
	}
	return nil
}

func (s *standIn) deliver(device *line, chat *standInChat, event *pb.ChatEvent, fault fault, isFirst bool) {
	altered := &pb.ChatEvent{ChatId: event.ChatId, Seq: event.Seq, Content: event.Content}
	text := func(seq uint64) string { return chat.log[seq-1].Content.GetText().GetText() }
	switch {
	case fault == loseEvent && isFirst:
		return
	case fault == repeatEvent && isFirst:
		device.pushEvent(chat, event)
	case fault == swapEvents && isFirst:
		altered.Content = newText(text(faultySeq - 1))
	case fault == changeText && isFirst:
		altered.Content = newText(text(faultySeq)[:textBytes-1] + "y")
	case fault == wrongChat:
		for id := range s.chats {
			if id != chat.id {
				altered.ChatId = id
			}
		}
	}
	device.pushEvent(chat, altered)
}

func newText(text string) *pb.Content {
	return &pb.Content{Body: &pb.Content_Text{Text: &pb.TextContent{Text: text}}}
}

func (s *standIn) create(id string, members []string) *standInChat {
	created := &pb.Content{Body: &pb.Content_ChatCreated{ChatCreated: &pb.ChatCreatedContent{}}}
	s.chats[id] = &standInChat{id: id, members: members, log: []*pb.ChatEvent{{ChatId: id, Seq: 1, Content: created}}}
	for _, member := range members {
		for _, device := range s.lines[member] {
			device.pushEvent(s.chats[id], s.chats[id].log[0])
		}
	}
	return s.chats[id]
}

func (c *standInChat) state() *pb.Chat {
	state := &pb.Chat{ChatId: c.id}
	for _, member := range c.members {
		state.Members = append(state.Members, &pb.Member{UserId: member})
	}
	return state
}

// pushEvent pushes an event, and before the first of a chat says that the device has the chat.
func (l *line) pushEvent(chat *standInChat, event *pb.ChatEvent) {
	if !l.opened[chat.id] {
		l.opened[chat.id] = true
		opened := &pb.ChatOpened{Chat: chat.state(), NextSeq: 1}
		l.push(&pb.ServerFrame{Body: &pb.ServerFrame_ChatOpened{ChatOpened: opened}})
	}
	l.push(&pb.ServerFrame{Body: &pb.ServerFrame_Event{Event: event}})
}

func (l *line) push(frame *pb.ServerFrame) { l.frames <- frame }

// write sends what waits, as one batch each time, until the stream ends.
func (l *line) write(stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse]) {
	for {
		batch := &pb.ConnectResponse{}
		select {
		case <-stream.Context().Done():
			return
		case frame := <-l.frames:
			batch.Frames = append(batch.Frames, frame)
		}
		for waiting := len(l.frames); waiting > 0; waiting-- {
			batch.Frames = append(batch.Frames, <-l.frames)
		}
		if stream.Send(batch) != nil {
			return
		}
	}
}

func digest(parts ...string) string {
	sum := sha256.Sum256(fmt.Append(nil, parts))
	return hex.EncodeToString(sum[:11])
}
