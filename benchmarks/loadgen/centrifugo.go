package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/centrifugal/protocol"
	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/encoding/protowire"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// peer is another server that can be loaded with the same shapes; empty = none, but chatgrpc.
type peer string

// centrifugo: a chat is a channel that its members subscribe to, with history; a message is a publication by a subscriber. There
// are no acknowledgements: nothing is sent for an Ack.
const centrifugo peer = "centrifugo"

const (
	// Beside the request ids of a device, which rise from 1 and stay below.
	subscribeID          = 1 << 31
	centrifugoBufferSize = 16 << 10
)

// centrifugoWire is a WebSocket connection in Centrifugo's client protocol, as Protobuf, that is in one channel. Its frames are
// translated one to one, so that the devices, their checks and their latencies are those that chatgrpc is measured with.
type centrifugoWire struct {
	conn    *websocket.Conn
	account account
	channel string
	pongs   bool // whether the server wants its pings answered

	command  protocol.CommandEncoder
	sending  bytes.Buffer // guarded by whoever sends, as with a gRPC stream
	reading  bytes.Buffer
	received []received
}

// openCentrifugo opens a wire; it ends with the context.
func openCentrifugo(ctx context.Context, target string, account account, channel string) (wire, error) {
	dialer := websocket.Dialer{
		ReadBufferSize: centrifugoBufferSize, WriteBufferSize: centrifugoBufferSize, Subprotocols: []string{"centrifuge-protobuf"},
	}
	conn, response, err := dialer.DialContext(ctx, "ws://"+target+"/connection/websocket", nil)
	if err != nil {
		return nil, err
	}
	_ = response.Body.Close()
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return &centrifugoWire{conn: conn, account: account, channel: channel, command: protocol.NewProtobufCommandEncoder()}, nil
}

func (w *centrifugoWire) Close() error { return w.conn.Close() }

func (w *centrifugoWire) Send(batch *pb.ConnectRequest) error {
	w.sending.Reset()
	for _, frame := range batch.Frames {
		for _, command := range w.commands(frame) {
			encoded, err := w.command.Encode(command)
			if err != nil {
				return err
			}
			w.sending.Write(encoded)
		}
	}
	if w.sending.Len() == 0 {
		return nil
	}
	return w.conn.WriteMessage(websocket.BinaryMessage, w.sending.Bytes())
}

func (w *centrifugoWire) commands(frame *pb.ClientFrame) []*protocol.Command {
	id := uint32(frame.RequestId)
	switch body := frame.Body.(type) {
	case *pb.ClientFrame_Hello:
		return []*protocol.Command{
			{Id: id, Connect: &protocol.ConnectRequest{Name: body.Hello.DeviceName}},
			{Id: subscribeID, Subscribe: &protocol.SubscribeRequest{Channel: w.channel}},
		}
	case *pb.ClientFrame_Send:
		text := []byte(body.Send.GetContent().GetText().GetText())
		return []*protocol.Command{{Id: id, Publish: &protocol.PublishRequest{Channel: w.channel, Data: text}}}
	case *pb.ClientFrame_Heartbeat:
		if w.pongs {
			return []*protocol.Command{{}}
		}
	}
	return nil
}

func (w *centrifugoWire) Recv() ([]received, error) {
	for w.received = w.received[:0]; len(w.received) == 0; {
		_, message, err := w.conn.NextReader()
		if err != nil {
			return nil, err
		}
		w.reading.Reset()
		if _, err := w.reading.ReadFrom(message); err != nil {
			return nil, err
		}
		for unread := w.reading.Bytes(); len(unread) > 0; {
			reply, length := protowire.ConsumeBytes(unread)
			if length < 0 {
				return nil, fmt.Errorf("replies that cannot be decoded: %w", protowire.ParseError(length))
			}
			if err := w.takeReply(reply); err != nil {
				return nil, err
			}
			unread = unread[length:]
		}
	}
	return w.received, nil
}

// Fields of a Reply, as in received.go.
const (
	replyPush         = 4<<3 | uint64(protowire.BytesType)
	pushChannel       = 2<<3 | uint64(protowire.BytesType)
	pushPub           = 4<<3 | uint64(protowire.BytesType)
	publicationData   = 4<<3 | uint64(protowire.BytesType)
	publicationOffset = 6<<3 | uint64(protowire.VarintType)
)

// takeReply adds what a Reply says to the batch; most are publications, of which only what is checked is read.
func (w *centrifugoWire) takeReply(encoded []byte) error {
	if publication, isOne := readPublication(encoded); isOne {
		w.received = append(w.received, received{event: publication})
		return nil
	}
	reply := &protocol.Reply{}
	if err := reply.UnmarshalVT(encoded); err != nil {
		return fmt.Errorf("a reply that cannot be decoded: %w", err)
	}
	frames, err := w.frames(reply)
	for _, frame := range frames {
		w.received = append(w.received, ofFrame(frame))
	}
	return err
}

// readPublication reads a Reply that is a publication with data, and nothing else; false = it is another, or unusual in any way.
func readPublication(encoded []byte) (read event, isOne bool) {
	wellFormed := eachField(encoded, func(tag uint64, _ uint64, push []byte) bool {
		return tag == replyPush && read.chatID == nil && readPush(push, &read)
	})
	return read, wellFormed && read.text != nil
}

func readPush(encoded []byte, read *event) bool {
	return eachField(encoded, func(tag uint64, _ uint64, value []byte) bool {
		switch tag {
		case pushChannel:
			read.chatID = value
		case pushPub:
			return read.text == nil && readPublicationFields(value, read)
		}
		return true
	}) && read.chatID != nil
}

func readPublicationFields(encoded []byte, read *event) bool {
	return eachField(encoded, func(tag uint64, varint uint64, value []byte) bool {
		switch tag {
		case publicationData:
			read.text = value
		case publicationOffset:
			read.seq = varint
		}
		return true
	})
}

func (w *centrifugoWire) frames(reply *protocol.Reply) ([]*pb.ServerFrame, error) {
	one := func(frame *pb.ServerFrame) ([]*pb.ServerFrame, error) { return []*pb.ServerFrame{frame}, nil }
	id := uint64(reply.Id)
	switch {
	case reply.Error != nil:
		return nil, fmt.Errorf("request %d failed: %d: %s", id, reply.Error.Code, reply.Error.Message)
	case reply.Push.GetPub() != nil:
		publication := reply.Push.Pub
		content := &pb.Content{Body: &pb.Content_Text{Text: &pb.TextContent{Text: string(publication.Data)}}}
		event := &pb.ChatEvent{ChatId: reply.Push.Channel, Seq: publication.Offset, Content: content}
		return one(&pb.ServerFrame{Body: &pb.ServerFrame_Event{Event: event}})
	case reply.Publish != nil:
		sent := &pb.SendResult{ChatId: w.channel}
		return one(&pb.ServerFrame{RequestId: id, Body: &pb.ServerFrame_Sent{Sent: sent}})
	case reply.Connect != nil:
		w.pongs = reply.Connect.Pong
		return one(&pb.ServerFrame{RequestId: id, Body: &pb.ServerFrame_Welcome{Welcome: &pb.Welcome{UserId: w.account.user}}})
	case reply.Subscribe != nil:
		opened := &pb.ChatOpened{Chat: &pb.Chat{ChatId: w.channel}, NextSeq: reply.Subscribe.Offset + 1}
		return []*pb.ServerFrame{
			{Body: &pb.ServerFrame_ChatOpened{ChatOpened: opened}},
			{Body: &pb.ServerFrame_SyncComplete{SyncComplete: &pb.SyncComplete{}}},
		}, nil
	case reply.Id == 0 && reply.Push == nil:
		return one(&pb.ServerFrame{Body: &pb.ServerFrame_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
	}
	return nil, fmt.Errorf("a reply that nothing asked for: %v", reply)
}
