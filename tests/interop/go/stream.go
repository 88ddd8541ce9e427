package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// stream is a call of SessionService.Connect.
type stream struct {
	pb.SessionService_ConnectClient
	cancel       context.CancelFunc
	frames       []*pb.ServerFrame
	seqs         map[string]uint64 // the last event that came, by chat
	lastRequest  uint64
	isHalfClosed bool
}

func (p *place) connect(ctx context.Context, options ...grpc.CallOption) *stream {
	ctx, cancel := context.WithCancel(ctx)
	call := must(pb.NewSessionServiceClient(p.conn).Connect(ctx, options...))
	return &stream{SessionService_ConnectClient: call, cancel: cancel, seqs: map[string]uint64{}}
}

// send sends a batch.
func (s *stream) send(frames ...*pb.ClientFrame) { check(s.Send(&pb.ConnectRequest{Frames: frames})) }

func (s *stream) nextRequest() uint64 {
	s.lastRequest++
	return s.lastRequest
}

func (s *stream) hello() *pb.ClientFrame {
	hello := &pb.Hello{DeviceId: "interop"}
	return &pb.ClientFrame{RequestId: s.nextRequest(), Body: &pb.ClientFrame_Hello{Hello: hello}}
}

// message makes a frame of a text to a user.
func (s *stream) message(to account, text string) *pb.ClientFrame {
	key := &pb.WriteKey{ClientMessageId: make([]byte, 16)}
	_ = must(rand.Read(key.ClientMessageId))
	for _, seq := range s.seqs { // there is one chat in each case
		key.SeenSeq = seq
	}
	send := &pb.SendMessage{To: &pb.SendMessage_UserId{UserId: to.user}, Key: key, Content: contentOf(text)}
	return &pb.ClientFrame{RequestId: s.nextRequest(), Body: &pb.ClientFrame_Send{Send: send}}
}

// read returns the next frame, or how the stream ended; it acknowledges events.
func (s *stream) read() (*pb.ServerFrame, error) {
	for len(s.frames) == 0 {
		batch, err := s.Recv()
		if err != nil {
			return nil, err
		}
		s.frames = batch.Frames
		var acks []*pb.ClientFrame
		for _, frame := range s.frames {
			if event := frame.GetEvent(); event != nil {
				s.seqs[event.ChatId] = event.Seq
				ack := &pb.Ack{ChatId: event.ChatId, Seq: event.Seq}
				acks = append(acks, &pb.ClientFrame{Body: &pb.ClientFrame_Ack{Ack: ack}})
			}
		}
		if len(acks) > 0 && !s.isHalfClosed {
			s.send(acks...)
		}
	}
	next := s.frames[0]
	s.frames = s.frames[1:]
	return next, nil
}

// until returns the next frame of this kind; it drops what comes before.
func (s *stream) until(kind protoreflect.Name) *pb.ServerFrame {
	for {
		frame := must(s.read())
		switch arm(frame) {
		case kind:
			return frame
		case "error", "disconnect":
			panic(fmt.Sprintf("%s was to come, not: %v", kind, frame))
		}
	}
}

// text returns the text of the next message.
func (s *stream) text() string {
	for {
		if text := s.until("event").GetEvent().GetContent().GetText(); text != nil {
			return text.Text
		}
	}
}

// arm names what is in a frame.
func arm(frame *pb.ServerFrame) protoreflect.Name {
	message := frame.ProtoReflect()
	return message.WhichOneof(message.Descriptor().Oneofs().ByName("body")).Name()
}

// open says Hello, and waits until the stream is in step.
func (s *stream) open() *pb.Welcome {
	s.send(s.hello())
	welcome := s.until("welcome").GetWelcome()
	s.until("sync_complete")
	return welcome
}

// halfClose says that nothing more is sent.
func (s *stream) halfClose() {
	s.isHalfClosed = true
	check(s.CloseSend())
}

// end reads all frames that still come; it returns them, and how the call ended.
func (s *stream) end() ([]*pb.ServerFrame, facts) {
	var frames []*pb.ServerFrame
	for {
		frame, err := s.read()
		if err != nil {
			return frames, endingOf(err)
		}
		frames = append(frames, frame)
	}
}

func contentOf(text string) *pb.Content {
	return &pb.Content{Body: &pb.Content_Text{Text: &pb.TextContent{Text: text}}}
}

// endingOf returns the status of a call, and what explains it.
func endingOf(err error) facts {
	if errors.Is(err, io.EOF) {
		return facts{"status": 0}
	}
	ended := status.Convert(err)
	seen := facts{"status": ended.Code()}
	for _, detail := range ended.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			seen.and(facts{"error_reason": info.Reason, "domain": info.Domain})
		}
	}
	return seen
}

// failed returns how a call failed, which must.
func failed(err error) facts {
	if err == nil {
		panic("the call did not fail")
	}
	return endingOf(err)
}
