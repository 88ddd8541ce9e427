package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// member is a device in the one chat that it is in. It checks what it receives: every event of the chat, in order, once, at the
// seq at which everyone else has it.
type member struct {
	*device
	run     *run
	target  string // the server it connects to
	chat    *chat
	sending *sending // nil = it only receives

	chatID     string // empty while not known
	backlog    uint32 // messages that must come before SyncComplete
	heldSeq    uint64
	ackedSeq   uint64
	ackedAt    time.Duration
	ackTimer   *time.Timer   // of acknowledgements that wait; nil before the first
	ackIsDue   bool          // whether it runs
	syncedAt   atomic.Int64  // when SyncComplete came; 0 = not yet
	received   atomic.Uint32 // messages, also one's own
	deliveries samples       // from sending to here
}

// join connects a member and serves it until the run ends.
func (m *member) join(account account, deviceID string) error {
	open := func(ctx context.Context) (wire, error) { return m.run.open(ctx, m.target, account, m.chat.index) }
	device, err := connect(m.run.ctx, open, account, deviceID, m.run.started, m)
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

func (m *member) event(event event, now time.Duration) error {
	if m.chatID != string(event.chatID) {
		if err := m.identify(string(event.chatID)); err != nil {
			return err
		}
	}
	if event.seq != m.heldSeq+1 {
		return fmt.Errorf("a hole or a repetition: %s seq %d came after seq %d", event.chatID, event.seq, m.heldSeq)
	}
	m.heldSeq = event.seq
	if event.text == nil {
		return nil
	}
	number, sentAt, err := m.chat.parse(event.text)
	if err != nil {
		return err
	}
	if number != m.received.Load() {
		return fmt.Errorf("message %d of %s came when message %d was next", number, event.chatID, m.received.Load())
	}
	m.received.Add(1)
	if m.run.measuring.Load() {
		m.deliveries.add(now - sentAt)
	}
	return m.chat.place(number, event.seq)
}

func (m *member) synced(now time.Duration) error {
	if received := m.received.Load(); received < m.backlog {
		return fmt.Errorf("SyncComplete came after %d of %d messages", received, m.backlog)
	}
	m.syncedAt.Store(int64(now))
	return nil
}

func (m *member) isSynced() bool { return m.syncedAt.Load() != 0 }

func (m *member) batchDone(now time.Duration) {
	if m.sending != nil && m.run.shape == batched {
		m.batchDoneOfSender(now)
		return
	}
	if m.run.ackDelay == 0 || m.heldSeq-m.ackedSeq >= m.ackAtOnceEvents() {
		m.acknowledge(now)
	} else if m.heldSeq > m.ackedSeq && !m.ackIsDue {
		m.acknowledgeLater()
	}
}

// ackAtOnceEvents is how many events a device acknowledges at once, however long it may wait: half of what the server lets it
// hold unacknowledged, so that it is never the device for which the server waits.
func (m *member) ackAtOnceEvents() uint64 { return uint64(m.limits.GetUnacknowledgedEventsMax()) / 2 }

// acknowledgeLater has what is held, and what comes meanwhile, acknowledged after the run's delay.
func (m *member) acknowledgeLater() {
	m.ackIsDue = true
	if m.ackTimer != nil {
		m.ackTimer.Reset(m.run.ackDelay)
		return
	}
	m.ackTimer = time.AfterFunc(m.run.ackDelay, func() {
		err := m.do(func(now time.Duration) {
			m.ackIsDue = false
			m.acknowledge(now)
		})
		if err != nil && m.ctx.Err() == nil {
			m.run.fail(err)
		}
	})
}

// acknowledge says that every event held is safe; one frame, however many events came. A peer is told nothing.
func (m *member) acknowledge(now time.Duration) {
	if m.heldSeq > m.ackedSeq {
		if m.run.peer == "" {
			m.queueAck(m.chatID, m.heldSeq)
		}
		m.ackedSeq, m.ackedAt = m.heldSeq, now
	}
}
