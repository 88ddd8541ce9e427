package main

import (
	"fmt"
	"time"
)

// The backlog is written with this many messages unanswered; well below limits.requests_in_flight_max.
const backlogWindow = 128

// replay: a user is away while a chat grows by a backlog; then one new device of theirs after the other connects and reads it
// all, acknowledging as it goes. What counts is messages until SyncComplete, counted from before the connection is made.
func (r *run) replay(backlog uint32, devices int) (*report, error) {
	group, err := r.writeBacklog(backlog)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, missing(group))
	}
	var all measured
	for i := range devices {
		result, err := r.readBacklog(i, group.chat, backlog)
		if err != nil {
			return nil, err
		}
		all = all.and(result)
	}
	return all.report(), nil
}

// writeBacklog sends the messages from the first account to the second, which has no device.
func (r *run) writeBacklog(backlog uint32) (*group, error) {
	group := r.newGroup(0, 1, backlogWindow)
	writer := group.sender()
	writer.sending.limit, writer.sending.peerUser = backlog, r.accounts[1].user
	if err := writer.join(r.accounts[0], "writer"); err != nil {
		return group, err
	}
	// The first message makes the chat; the others name it.
	if err := writer.do(writer.queueMessage); err != nil {
		return group, err
	}
	if err := r.await("the first message committed", group.isComplete); err != nil {
		return group, err
	}
	r.sending.Store(true)
	if err := writer.start(); err != nil {
		return group, err
	}
	err := r.awaitLong("the backlog committed", r.patience+time.Duration(backlog)*time.Millisecond, group.isComplete)
	r.sending.Store(false)
	return group, err
}

// readBacklog lets the reader of this number read it all; the first one is not at the writer's server, if there are several.
func (r *run) readBacklog(number int, chat *chat, backlog uint32) (measured, error) {
	reader := &member{run: r, target: r.target(number, 1), chat: chat, backlog: backlog}
	received := func() uint64 { return uint64(reader.received.Load()) }
	before, err := r.reading(received)
	if err != nil {
		return measured{}, err
	}
	if err := reader.join(r.accounts[1], fmt.Sprintf("reader-%d", number)); err != nil {
		return measured{}, err
	}
	defer reader.disconnect()
	if err := r.awaitLong("the backlog replayed", r.patience+time.Duration(backlog)*time.Millisecond, reader.isSynced); err != nil {
		return measured{}, fmt.Errorf("%w (%d of %d messages came)", err, reader.received.Load(), backlog)
	}
	after, err := r.reading(received)
	after.elapsed = time.Duration(reader.syncedAt.Load())
	return after.since(before), err
}
