package main

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

const (
	// Where the streams of devices go: the native edge serves no other.
	echoMethod = "/chatgrpc.v1.SessionService/Connect"
	// About the size of a batch with one message of a text of 100 bytes, and of one with its event.
	echoBytes = 190
)

// rawCodec passes bytes through, as the echo server does.
type rawCodec struct{}

func (rawCodec) Name() string { return "raw" }

func (rawCodec) Marshal(message any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*message.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, message any) error {
	*message.(*[]byte) = data.Materialize()
	return nil
}

// echoer is one stream to the echo server with a window of messages under way.
type echoer struct {
	run    *run
	stream grpc.ClientStream
	window uint64

	mutex   sync.Mutex // held while sending
	sent    uint64
	echoed  atomic.Uint64
	samples samples
}

// echo: streams with a window of messages each, every one its own write. What counts is messages that came back.
func (r *run) echo(count int, window uint64) (*report, error) {
	echoers, err := r.openEchoers(count, window)
	if err != nil {
		return nil, err
	}
	echoed := func() (messages uint64) {
		for _, e := range echoers {
			messages += e.echoed.Load()
		}
		return messages
	}
	kick := func() error { return each(count, func(i int) error { return echoers[i].sendMore() }) }
	done := func() bool { return every(echoers, (*echoer).isQuiet) }
	result, err := r.load(kick, echoed, done)
	r.end()
	if err != nil {
		return nil, err
	}
	var latencies []samples
	for _, e := range echoers {
		latencies = append(latencies, e.samples)
	}
	report, joined := result.report(), join(latencies...)
	report.P50Ms, report.P99Ms = joined.percentileMs(0.50), joined.percentileMs(0.99)
	return report, nil
}

// openEchoers opens streams to the echo server and waits until each has echoed a message.
func (r *run) openEchoers(count int, window uint64) ([]*echoer, error) {
	echoers := make([]*echoer, count)
	err := each(count, func(i int) (err error) {
		echoers[i], err = r.openEchoer(i, window)
		return err
	})
	if err != nil {
		return nil, err
	}
	return echoers, r.await("every stream echoes", func() bool { return every(echoers, (*echoer).isQuiet) })
}

func (r *run) openEchoer(index int, window uint64) (*echoer, error) {
	conn, err := dial(r.target(index, 0))
	if err != nil {
		return nil, err
	}
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := conn.NewStream(r.ctx, description, echoMethod, grpc.ForceCodecV2(rawCodec{}), grpc.WaitForReady(true))
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	e := &echoer{run: r, stream: stream, window: window}
	r.serve(e.serve, func() { _ = conn.Close() })
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return e, e.sendOne(time.Since(r.started))
}

func (e *echoer) serve() error {
	for {
		var message []byte
		err := e.stream.RecvMsg(&message)
		if e.run.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("echo: the stream ended: %w", err)
		}
		if err := e.takeIn(message, time.Since(e.run.started)); err != nil && e.run.ctx.Err() == nil {
			return fmt.Errorf("echo: %w", err)
		}
	}
}

func (e *echoer) takeIn(message []byte, now time.Duration) error {
	if len(message) != echoBytes || binary.BigEndian.Uint64(message) != e.echoed.Load() {
		return fmt.Errorf("message %d came back as %d other bytes", e.echoed.Load(), len(message))
	}
	if e.run.measuring.Load() {
		e.samples.add(now - time.Duration(binary.BigEndian.Uint64(message[8:])))
	}
	e.echoed.Add(1)
	return e.sendMore()
}

// sendMore fills the window.
func (e *echoer) sendMore() error {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	limit := uint64(e.run.messages)
	for e.run.sending.Load() && e.sent-e.echoed.Load() < e.window && (limit == 0 || e.sent < limit) {
		if err := e.sendOne(time.Since(e.run.started)); err != nil {
			return err
		}
	}
	return nil
}

func (e *echoer) sendOne(now time.Duration) error {
	message := make([]byte, echoBytes) // not used again: gRPC keeps it until it is written
	binary.BigEndian.PutUint64(message, e.sent)
	binary.BigEndian.PutUint64(message[8:], uint64(now))
	e.sent++
	return e.stream.SendMsg(&message)
}

func (e *echoer) isQuiet() bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	reached := !e.run.sending.Load() || e.sent >= uint64(e.run.messages)
	return reached && e.echoed.Load() == e.sent
}
