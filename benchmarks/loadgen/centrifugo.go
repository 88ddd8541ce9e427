package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/centrifugal/protocol"
	"github.com/gorilla/websocket"

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

	command protocol.CommandEncoder
	sending bytes.Buffer // guarded by whoever sends, as with a gRPC stream
	reading bytes.Buffer
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

func (w *centrifugoWire) Recv() (*pb.ConnectResponse, error) {
	batch := &pb.ConnectResponse{}
	for len(batch.Frames) == 0 {
		_, message, err := w.conn.NextReader()
		if err != nil {
			return nil, err
		}
		w.reading.Reset()
		if _, err := w.reading.ReadFrom(message); err != nil {
			return nil, err
		}
		for decoder := protocol.NewProtobufReplyDecoder(w.reading.Bytes()); ; {
			reply, err := decoder.Decode()
			if reply != nil {
				frames, err := w.frames(reply)
				if err != nil {
					return nil, err
				}
				batch.Frames = append(batch.Frames, frames...)
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return batch, nil
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
