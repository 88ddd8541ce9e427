package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

const (
	// A sender acknowledges its own messages on the back of its next ones, but not all the time.
	ownAckEvents   = 32
	ownAckInterval = time.Second
)

// member is a device in the one chat that it is in. It checks what it receives: every event of the chat, in order, once, at the
// seq at which everyone else has it. A member with a window is the chat's sender.
type member struct {
	*device
	run    *run
	target string // the server it connects to
	chat   *chat

	// Of a sender.
	window   uint32 // messages that may be unanswered; 0 = not a sender
	limit    uint32 // messages to send in all; 0 = until the run stops
	peerUser string // whom to send to while the chat has no id
	number   uint32 // the next message
	ackedAt  time.Duration

	chatID     string // empty while not known
	backlog    uint32 // messages that must come before SyncComplete
	heldSeq    uint64
	ackedSeq   uint64
	syncedAt   atomic.Int64  // when SyncComplete came; 0 = not yet
	received   atomic.Uint32 // messages, also one's own
	answered   atomic.Uint32
	deliveries samples // from sending to here
	answers    samples // from sending to the SendResult
	sentAt     []time.Duration
}

// join connects a member and serves it until the run ends.
func (m *member) join(account account, deviceID string) error {
	device, err := connect(m.run.ctx, m.target, account, deviceID, m.run.started, m)
	if err != nil {
		return err
	}
	m.device = device
	m.run.serve(device.serve, device.close)
	return nil
}

func (m *member) identify(chatID string) error {
	if m.chatID == chatID {
		return nil
	}
	m.chatID = chatID
	return m.chat.identify(chatID)
}

func (m *member) opened(chatID string, nextSeq uint64) error {
	if err := m.identify(chatID); err != nil {
		return err
	}
	if m.heldSeq != 0 || nextSeq == 0 {
		return fmt.Errorf("%s opened at seq %d, while seq %d is held", chatID, nextSeq, m.heldSeq)
	}
	m.heldSeq = nextSeq - 1
	m.ackedSeq = m.heldSeq
	return nil
}

func (m *member) event(event *pb.ChatEvent, now time.Duration) error {
	if err := m.identify(event.ChatId); err != nil {
		return err
	}
	if event.Seq != m.heldSeq+1 {
		return fmt.Errorf("a hole or a repetition: %s seq %d came after seq %d", event.ChatId, event.Seq, m.heldSeq)
	}
	m.heldSeq = event.Seq
	text, isText := event.Content.GetBody().(*pb.Content_Text)
	if !isText {
		return nil
	}
	number, sentAt, err := m.chat.parse(text.Text.Text)
	if err != nil {
		return err
	}
	if number != m.received.Load() {
		return fmt.Errorf("message %d of %s came when message %d was next", number, event.ChatId, m.received.Load())
	}
	m.received.Add(1)
	if m.run.measuring.Load() {
		m.deliveries.add(now - sentAt)
	}
	return m.chat.place(number, event.Seq)
}

func (m *member) sent(requestID uint64, result *pb.SendResult, now time.Duration) error {
	number := m.answered.Load()
	if expected := uint64(number) + firstSendRequest; requestID != expected {
		return fmt.Errorf("the answer to request %d came when that to %d was next", requestID, expected)
	}
	if result.Duplicate {
		return fmt.Errorf("message %d of %s was sent once and is called a duplicate", number, result.ChatId)
	}
	m.answered.Add(1)
	if m.run.measuring.Load() {
		m.answers.add(now - m.sentAt[number])
	}
	return errors.Join(m.identify(result.ChatId), m.chat.place(number, result.Seq))
}

func (m *member) synced(now time.Duration) error {
	if received := m.received.Load(); received < m.backlog {
		return fmt.Errorf("SyncComplete came after %d of %d messages", received, m.backlog)
	}
	m.syncedAt.Store(int64(now))
	return nil
}

func (m *member) isSynced() bool { return m.syncedAt.Load() != 0 }

// sentCount is the number of messages sent so far.
func (m *member) sentCount() uint32 {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.number
}

func (m *member) batchDone(now time.Duration) {
	if m.window == 0 {
		m.acknowledge(now)
		return
	}
	m.sendMore(now)
	due := m.heldSeq-m.ackedSeq >= ownAckEvents || now-m.ackedAt >= ownAckInterval
	if due && len(m.outbox) > 0 || m.heldSeq-m.ackedSeq >= 10*ownAckEvents {
		m.acknowledge(now)
	}
}

// acknowledge says that every event held is safe; one frame, however many events came.
func (m *member) acknowledge(now time.Duration) {
	if m.heldSeq > m.ackedSeq {
		m.queueAck(m.chatID, m.heldSeq)
		m.ackedSeq, m.ackedAt = m.heldSeq, now
	}
}

// firstSendRequest is the request id of message 0: a device's Hello has 1, and after it only messages have one.
const firstSendRequest = 2

// sendMore fills the window.
func (m *member) sendMore(now time.Duration) {
	for m.run.sending.Load() && m.number-m.answered.Load() < m.window && (m.limit == 0 || m.number < m.limit) {
		m.queueMessage(now)
	}
}

func (m *member) queueMessage(now time.Duration) {
	message := &pb.SendMessage{
		Key:     &pb.WriteKey{ClientMessageId: m.clientMessageID(), SeenSeq: m.heldSeq},
		Content: &pb.Content{Body: &pb.Content_Text{Text: &pb.TextContent{Text: m.chat.text(m.number, now)}}},
	}
	if m.chatID != "" {
		message.To = &pb.SendMessage_ChatId{ChatId: m.chatID}
	} else {
		message.To = &pb.SendMessage_UserId{UserId: m.peerUser}
	}
	m.queue(&pb.ClientFrame{RequestId: m.nextRequest(), Body: &pb.ClientFrame_Send{Send: message}})
	m.sentAt = append(m.sentAt, now)
	m.number++
}

// clientMessageID names a message; the run's random half makes it different from those of other runs.
func (m *member) clientMessageID() []byte {
	id := make([]byte, 0, 16)
	id = binary.BigEndian.AppendUint64(id, m.run.salt)
	id = binary.BigEndian.AppendUint32(id, m.chat.index)
	return binary.BigEndian.AppendUint32(id, m.number)
}
