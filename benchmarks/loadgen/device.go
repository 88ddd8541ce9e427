package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// account is a user and the token that proves it.
type account struct {
	user  string
	token string
}

// authorized returns the context of a call made by the account.
func (a account) authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.token)
}

// role is what a device does with what it receives. All of its methods are called with the device locked; what they queue is
// sent as one batch afterwards.
type role interface {
	// opened: the device holds the chat from now on; its next event is nextSeq.
	opened(chatID string, nextSeq uint64) error
	// event: the next event of a chat.
	event(event event, now time.Duration) error
	// sent: the answer to a message that was queued with this request id.
	sent(requestID uint64, result *pb.SendResult, now time.Duration) error
	// synced: everything up to the Hello has come.
	synced(now time.Duration) error
	// batchDone: the batch has been taken in; time to answer it.
	batchDone(now time.Duration)
}

// device is one device of a user: one connection with one stream, as in life.
type device struct {
	account    account
	wire       wire
	ctx        context.Context // of the wire
	disconnect context.CancelFunc
	role       role
	started    time.Time // all times are counted from here
	limits     *pb.Limits

	mutex       sync.Mutex // held while frames are made and sent
	outbox      []*pb.ClientFrame
	lastRequest uint64
}

// dial connects to a server with fixed flow-control windows, so that the client sends no pings to measure the link.
func dial(target string) (*grpc.ClientConn, error) {
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20),
	)
}

// wire is one open stream to a server, in the frames of chatgrpc whatever the server's own are.
type wire interface {
	Send(*pb.ConnectRequest) error
	// Recv returns the next batch, which holds until the one after it; in the first one the first frame answers the Hello.
	Recv() ([]received, error)
	Close() error
}

// grpcWire is a stream of SessionService.Connect on a connection of its own.
type grpcWire struct {
	pb.SessionService_ConnectClient
	conn    *grpc.ClientConn
	reading []byte
	reader  batchReader
}

func (w *grpcWire) Close() error { return w.conn.Close() }

func (w *grpcWire) Recv() ([]received, error) {
	if err := w.RecvMsg(&w.reading); err != nil {
		return nil, err
	}
	return w.reader.read(w.reading)
}

// encodedCodec is that of gRPC, but leaves what is received encoded, in a buffer that is used again.
type encodedCodec struct{ encoding.CodecV2 }

func (encodedCodec) Unmarshal(data mem.BufferSlice, message any) error {
	into := message.(*[]byte)
	*into = (*into)[:0]
	for _, part := range data {
		*into = append(*into, part.ReadOnlyData()...)
	}
	return nil
}

var receivedEncoded = grpc.ForceCodecV2(encodedCodec{encoding.GetCodecV2("proto")})

// openGRPC opens a wire to a chatgrpc server; it ends with the context.
func openGRPC(ctx context.Context, target string, account account) (wire, error) {
	conn, err := dial(target)
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewSessionServiceClient(conn).Connect(account.authorized(ctx), grpc.WaitForReady(true), receivedEncoded)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &grpcWire{SessionService_ConnectClient: stream, conn: conn}, nil
}

// connect opens a device's wire and says Hello. The device must then be served.
func connect(
	ctx context.Context, open func(context.Context) (wire, error), account account, deviceID string, started time.Time, role role,
) (*device, error) {
	ctx, disconnect := context.WithCancel(ctx)
	wire, err := open(ctx)
	if err != nil {
		disconnect()
		return nil, fmt.Errorf("%s: connecting: %w", account.user, err)
	}
	d := &device{account: account, wire: wire, ctx: ctx, disconnect: disconnect, role: role, started: started}
	hello := &pb.Hello{DeviceId: deviceID, DeviceName: "loadgen", StartAt: pb.StartAt_START_AT_ACKNOWLEDGED}
	err = d.do(func(time.Duration) {
		d.queue(&pb.ClientFrame{RequestId: d.nextRequest(), Body: &pb.ClientFrame_Hello{Hello: hello}})
	})
	return d, err
}

// do lets f queue frames, from outside the device's own loop, and sends them.
func (d *device) do(f func(now time.Duration)) error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	f(time.Since(d.started))
	return d.flush()
}

// queue adds a frame to the batch in the making.
func (d *device) queue(frame *pb.ClientFrame) { d.outbox = append(d.outbox, frame) }

// queueAck acknowledges the events of a chat up to seq.
func (d *device) queueAck(chatID string, seq uint64) {
	d.queue(&pb.ClientFrame{Body: &pb.ClientFrame_Ack{Ack: &pb.Ack{ChatId: chatID, Seq: seq}}})
}

func (d *device) nextRequest() uint64 {
	d.lastRequest++
	return d.lastRequest
}

func (d *device) flush() error {
	if len(d.outbox) == 0 {
		return nil
	}
	err := d.wire.Send(&pb.ConnectRequest{Frames: d.outbox})
	d.outbox = d.outbox[:0]
	if err != nil {
		return fmt.Errorf("%s: sending: %w", d.account.user, err)
	}
	return nil
}

// serve takes in what the server sends, until the device is disconnected (nil) or something is wrong.
func (d *device) serve() error {
	for welcomed := false; ; {
		batch, err := d.wire.Recv()
		if d.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: the stream ended: %w", d.account.user, err)
		}
		if !welcomed {
			if err := d.checkWelcome(batch); err != nil {
				return err
			}
			batch = batch[1:]
			welcomed = true
		}
		if err := d.takeIn(batch); err != nil && d.ctx.Err() == nil {
			return fmt.Errorf("%s: %w", d.account.user, err)
		}
	}
}

func (d *device) close() {
	d.disconnect()
	_ = d.wire.Close()
}

func (d *device) checkWelcome(batch []received) error {
	if len(batch) == 0 {
		return fmt.Errorf("%s: an empty batch", d.account.user)
	}
	first := batch[0].other
	if welcome := first.GetWelcome(); welcome == nil || first.RequestId != 1 || welcome.UserId != d.account.user {
		return fmt.Errorf("%s: the first frame is no Welcome to this user's Hello: %v", d.account.user, first)
	}
	d.limits = first.GetWelcome().GetLimits()
	return nil
}

func (d *device) takeIn(batch []received) error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	now := time.Since(d.started)
	for _, frame := range batch {
		var err error
		if frame.other == nil {
			err = d.role.event(frame.event, now)
		} else {
			err = d.takeInFrame(frame.other, now)
		}
		if err != nil {
			return err
		}
	}
	d.role.batchDone(now)
	return d.flush()
}

// takeInFrame takes in a frame that is no event.
func (d *device) takeInFrame(frame *pb.ServerFrame, now time.Duration) error {
	switch body := frame.Body.(type) {
	case *pb.ServerFrame_Sent:
		return d.role.sent(frame.RequestId, body.Sent, now)
	case *pb.ServerFrame_ChatOpened:
		return d.role.opened(body.ChatOpened.GetChat().GetChatId(), body.ChatOpened.NextSeq)
	case *pb.ServerFrame_SyncComplete:
		return d.role.synced(now)
	case *pb.ServerFrame_Heartbeat:
		d.queue(&pb.ClientFrame{Body: &pb.ClientFrame_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
	case *pb.ServerFrame_Receipt, *pb.ServerFrame_Presence, *pb.ServerFrame_Typing:
	case *pb.ServerFrame_Error:
		return fmt.Errorf("request %d failed: %v: %s", frame.RequestId, body.Error.Code, body.Error.Message)
	case *pb.ServerFrame_Disconnect:
		return fmt.Errorf("disconnected: %v: %s", body.Disconnect.Code, body.Disconnect.Message)
	default:
		return fmt.Errorf("a frame that nothing asked for: %v", frame)
	}
	return nil
}
