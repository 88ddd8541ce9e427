package main

import (
	"errors"
	"testing"
	"time"
)

func TestAnIndependentSenderSendsOneMessageAtATimeAndABatchedOneMany(t *testing.T) {
	for shape, isOne := range map[shape]bool{independent: true, batched: false} {
		standIn, targets := startStandInOn(t, none, 1)
		options := someOptions(targets[0], 6)
		options.shape = shape
		if _, err := newRun(options).perform(func(r *run) (*report, error) { return r.pairs(3, 8) }); err != nil {
			t.Fatal(err)
		}
		if (standIn.mostSends == 1) != isOne {
			t.Errorf("%s: %d messages came in one batch", shape, standIn.mostSends)
		}
	}
}

func TestAnIndependentSenderHasNoMoreUnderWayThanItsWindow(t *testing.T) {
	const window = 4
	// A message is complete only when the last member has it too: nobody but the sender is there.
	r := newRun(someOptions(startStandIn(t, none), 3))
	group := r.newGroup(0, 2, window)
	sender := group.sender()
	sender.sending.peerUser = r.accounts[1].user
	if err := sender.join(r.accounts[0], "loadgen"); err != nil {
		t.Fatal(err)
	}
	answered := func(count uint32) func() bool {
		return func() bool { return sender.sending.answered.Load() == count }
	}
	// The first message, before the window counts, makes the chat.
	if err := errors.Join(sender.do(sender.queueMessage), r.await("the chat is there", answered(1))); err != nil {
		t.Fatal(err)
	}
	r.sending.Store(true)
	if err := errors.Join(sender.start(), r.await("the window is answered", answered(1+window))); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if sent := sender.sentCount(); sent != 1+window {
		t.Errorf("%d messages were sent, of which none is complete, with a window of %d", sent, window)
	}
	// With the other member there they are, and the rest follows.
	if err := group.members[1].join(r.accounts[1], "loadgen"); err != nil {
		t.Fatal(err)
	}
	if err := r.await("all is complete", group.isComplete); err != nil {
		t.Fatal(err)
	}
	r.end()
}

func TestAtARandomRateLatencyCountsFromTheTimeThatWasMeant(t *testing.T) {
	const stall = 300 * time.Millisecond
	standIn, targets := startStandInOn(t, none, 1)
	standIn.hold = func(seq uint64) time.Duration {
		if seq == 10 {
			return stall
		}
		return 0
	}
	options := someOptions(targets[0], 2)
	options.messages, options.ratePerS, options.duration = 0, 200, 2*time.Second
	report, err := newRun(options).perform(func(r *run) (*report, error) { return r.pairs(1, 1) })
	if err != nil {
		t.Fatal(err)
	}
	// 400 on average; a Poisson process is beyond six times its deviation, 20, once in a billion runs.
	if report.Count < 280 || report.Count > 520 {
		t.Errorf("%d messages in 2 s at 200 a second", report.Count)
	}
	// Some 60 of 400 were due during the stall, and a third of these in its first 100 ms.
	if *report.P99Ms < 200 {
		t.Errorf("a stall of %v shows as a p99 of %v ms", stall, *report.P99Ms)
	}
}

func TestAcknowledgementsThatMayWaitAreGathered(t *testing.T) {
	const messages = 200
	for delay, most := range map[time.Duration]int{
		0:                     messages + 10,
		time.Hour:             messages/(standInUnacknowledgedMax/2) + 1, // half a window is acknowledged at once
		20 * time.Millisecond: 120,
	} {
		standIn, targets := startStandInOn(t, none, 1)
		standIn.hold = func(uint64) time.Duration { return time.Millisecond }
		options := someOptions(targets[0], 2)
		options.messages, options.ackDelay = messages, delay
		if _, err := newRun(options).perform(func(r *run) (*report, error) { return r.pairs(1, 1) }); err != nil {
			t.Fatal(err)
		}
		for user, acks := range standIn.acks {
			if acks > most || delay == 0 && acks < messages/2 || acks == 0 {
				t.Errorf("with a delay of %v %s acknowledged %d times, at most %d were expected", delay, user, acks, most)
			}
		}
	}
}
