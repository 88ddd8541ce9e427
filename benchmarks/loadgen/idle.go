package main

import (
	"fmt"
	"time"
)

const (
	// Opened before the first look at the servers' memory, so that what a server loads once is not counted.
	idleBaseline = 20
	// From the last opening to the second look.
	idleSettle = 2 * time.Second
)

// idle: streams that are open, greeted and silent, each of its own user. What is measured is the servers' memory for each.
func (r *run) idle(count int) (*report, error) {
	members := make([]*member, count)
	return r.weigh(count, func(i int) error {
		members[i] = &member{run: r, target: r.target(i, 0), chat: &chat{}}
		if err := members[i].join(r.accounts[i], "loadgen"); err != nil {
			return err
		}
		return r.await("the device is up to date", members[i].isSynced)
	})
}

// echoIdle: the same of the echo server; each stream has echoed one message.
func (r *run) echoIdle(count int) (*report, error) {
	return r.weigh(count, func(i int) error {
		echoer, err := r.openEchoer(i, 1)
		if err != nil {
			return err
		}
		return r.await("the stream echoes", echoer.isQuiet)
	})
}

// weigh opens `count` streams and returns what they cost the servers in memory.
func (r *run) weigh(count int, open func(i int) error) (*report, error) {
	if count <= idleBaseline {
		return nil, fmt.Errorf("memory is measured with more than %d streams, not %d", idleBaseline, count)
	}
	if err := each(idleBaseline, open); err != nil {
		return nil, err
	}
	if err := r.sleep(idleSettle); err != nil {
		return nil, err
	}
	before, err := total(r.serverPIDs, processRSS)
	if err != nil {
		return nil, err
	}
	result, err := r.measure(func() uint64 { return 0 }, func() error {
		return each(count-idleBaseline, func(i int) error { return open(idleBaseline + i) })
	})
	result.count = uint64(count - idleBaseline)
	if err != nil {
		return nil, err
	}
	if err := r.sleep(idleSettle); err != nil {
		return nil, err
	}
	after, err := total(r.serverPIDs, processRSS)
	if err != nil {
		return nil, err
	}
	report := result.report()
	perStream := float64(after-before) / float64(result.count)
	report.KBPerStream = &perStream
	return report, nil
}
