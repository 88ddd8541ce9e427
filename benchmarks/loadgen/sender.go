package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// shape is when senders send.
type shape string

const (
	// independent: each sends one message, as a gRPC message of its own, as soon as one of its own is complete: answered, and
	// received by every member. Or, with a rate, at random times, whatever is complete. So people send: nothing brings them into step.
	independent shape = "independent"
	// batched: each fills its window with every batch that has answers for it, in one gRPC message. Senders fall into step with the
	// server's batches, so this shows the most that a server can do, and not what it does for people.
	batched shape = "batched"
)

const (
	// A batched sender acknowledges its own messages on the back of its next ones, but not all the time.
	ownAckEvents   = 32
	ownAckInterval = time.Second
)

// sending is what a member has that sends. It is guarded by the device's mutex, but for what is atomic.
type sending struct {
	window   uint32 // messages that may be incomplete, or, batched, unanswered
	limit    uint32 // messages to send in all; 0 = until the run stops
	peerUser string // whom to send to while the chat has no id

	number   uint32 // the next message
	sentAt   []time.Duration
	answered atomic.Uint32
	answers  samples // from sending to the SendResult
	// By an independent sender one is taken for each message.
	permits chan struct{}
}

func newSending(window, limit uint32) *sending {
	return &sending{window: window, limit: limit, permits: make(chan struct{}, window)}
}

func (m *member) sent(requestID uint64, result *pb.SendResult, now time.Duration) error {
	if m.sending == nil {
		return fmt.Errorf("request %d was answered as a message, and this device sends none", requestID)
	}
	number := m.sending.answered.Load()
	if expected := uint64(number) + firstSendRequest; requestID != expected {
		return fmt.Errorf("the answer to request %d came when that to %d was next", requestID, expected)
	}
	if result.Duplicate {
		return fmt.Errorf("message %d of %s was sent once and is called a duplicate", number, result.ChatId)
	}
	if result.Seq == 0 && m.run.peer == "" {
		return fmt.Errorf("message %d of %s was answered without its seq", number, result.ChatId)
	}
	m.sending.answered.Add(1)
	if m.run.measuring.Load() {
		m.sending.answers.add(now - m.sending.sentAt[number])
	}
	return errors.Join(m.identify(result.ChatId), m.chat.place(number, result.Seq))
}

// firstSendRequest is the request id of message 0: a device's Hello has 1, and after it only messages have one.
const firstSendRequest = 2

// start begins to send in the shape of the run, from outside the device's own loop.
func (m *member) start() error {
	switch {
	case m.run.shape == batched:
		return m.do(m.sendMore)
	case m.run.ratePerS > 0:
		m.run.serve(m.sendAtRandomTimes, func() {})
	default:
		for range m.sending.window {
			m.sending.permit()
		}
		m.run.serve(m.sendAsPermitted, func() {})
	}
	return nil
}

// messageComplete is told when a message of the chat is answered and has reached every member.
func (m *member) messageComplete() {
	if m.run.shape == independent && m.run.ratePerS == 0 {
		m.sending.permit()
	}
}

// permit lets one more message be sent; never more than the window at once.
func (s *sending) permit() {
	select {
	case s.permits <- struct{}{}:
	default:
	}
}

// sendAsPermitted sends a message for each permit, until the run stops sending.
func (m *member) sendAsPermitted() error {
	for {
		select {
		case <-m.run.ctx.Done():
			return nil
		case <-m.sending.permits:
		}
		if sent, err := m.sendOne(func(now time.Duration) time.Duration { return now }); !sent || err != nil {
			return err
		}
	}
}

// sendAtRandomTimes sends as many people would together: the times are those of a Poisson process, and a message counts from the
// time at which it should have been sent, so that a server that holds senders up does not look faster for it.
func (m *member) sendAtRandomTimes() error {
	for intended := time.Since(m.started); ; {
		intended += time.Duration(rand.ExpFloat64() / m.run.ratePerS * float64(time.Second))
		if err := m.run.sleep(intended - time.Since(m.started)); err != nil {
			return nil
		}
		if sent, err := m.sendOne(func(time.Duration) time.Duration { return intended }); !sent || err != nil {
			return err
		}
	}
}

// sendOne sends one message, if the run still sends; `from` says from when its latency is counted.
func (m *member) sendOne(from func(now time.Duration) time.Duration) (sent bool, err error) {
	err = m.do(func(now time.Duration) {
		if sent = m.maySend(); sent {
			m.queueMessage(from(now))
		}
	})
	if m.ctx.Err() != nil {
		return false, nil
	}
	return sent, err
}

// maySend is asked under the device's mutex, so that whoever reads how many were sent, after sending has ended, reads all.
func (m *member) maySend() bool {
	return m.run.sending.Load() && (m.sending.limit == 0 || m.sending.number < m.sending.limit)
}

// sendMore fills the window.
func (m *member) sendMore(now time.Duration) {
	for m.maySend() && m.sending.number-m.sending.answered.Load() < m.sending.window {
		m.queueMessage(now)
	}
}

// sentCount is the number of messages sent so far.
func (m *member) sentCount() uint32 {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.sending.number
}

func (m *member) batchDoneOfSender(now time.Duration) {
	m.sendMore(now)
	due := m.heldSeq-m.ackedSeq >= ownAckEvents || now-m.ackedAt >= ownAckInterval
	if due && len(m.outbox) > 0 || m.heldSeq-m.ackedSeq >= 10*ownAckEvents {
		m.acknowledge(now)
	}
}

// queueMessage adds the next message to the batch; its latency is counted from the time given.
func (m *member) queueMessage(from time.Duration) {
	message := &pb.SendMessage{
		Key:     &pb.WriteKey{ClientMessageId: m.clientMessageID(), SeenSeq: m.heldSeq},
		Content: &pb.Content{Body: &pb.Content_Text{Text: &pb.TextContent{Text: m.chat.text(m.sending.number, from)}}},
	}
	if m.chatID != "" {
		message.To = &pb.SendMessage_ChatId{ChatId: m.chatID}
	} else {
		message.To = &pb.SendMessage_UserId{UserId: m.sending.peerUser}
	}
	m.queue(&pb.ClientFrame{RequestId: m.nextRequest(), Body: &pb.ClientFrame_Send{Send: message}})
	m.sending.sentAt = append(m.sending.sentAt, from)
	m.sending.number++
}

// clientMessageID names a message; the run's random half makes it different from those of other runs.
func (m *member) clientMessageID() []byte {
	id := make([]byte, 0, 16)
	id = binary.BigEndian.AppendUint64(id, m.run.salt)
	id = binary.BigEndian.AppendUint32(id, m.chat.index)
	return binary.BigEndian.AppendUint32(id, m.sending.number)
}
