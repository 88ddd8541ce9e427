package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const pollInterval = 2 * time.Millisecond

// run is one run against one server, or one cluster: when it sends and measures, and the first thing that went wrong.
type run struct {
	options
	started time.Time
	salt    uint64
	ctx     context.Context
	fail    context.CancelCauseFunc
	served  sync.WaitGroup

	sending   atomic.Bool
	measuring atomic.Bool
}

// options are what the command line says of a run.
type options struct {
	targets    []string         // addresses of the servers
	serverPIDs []int            // whose CPU and memory are read
	services   map[string][]int // by name, further processes whose CPU is read
	accounts   []account
	warmup     time.Duration
	duration   time.Duration
	messages   uint32        // per sender, instead of a time; 0 = by time
	patience   time.Duration // longest wait for anything that is due
	peer       peer
	shape      shape
	ratePerS   float64       // of each sender, at random times; 0 = as messages are complete
	ackDelay   time.Duration // longest wait before what came is acknowledged; 0 = each batch at once
}

func newRun(options options) *run {
	ctx, fail := context.WithCancelCause(context.Background())
	return &run{options: options, started: time.Now(), salt: rand.Uint64(), ctx: ctx, fail: fail}
}

// open opens a wire for a device that is in the chat of this number.
func (r *run) open(ctx context.Context, target string, account account, chat uint32) (wire, error) {
	if r.peer == centrifugo {
		return openCentrifugo(ctx, target, account, fmt.Sprintf("chat-%016x-%d", r.salt, chat))
	}
	return openGRPC(ctx, target, account)
}

// target is the server of a member of a group: the members are at one after the other, and the groups do not all begin at the same.
func (r *run) target(group, member int) string { return r.targets[(group+member)%len(r.targets)] }

// perform runs one of the modes to its end. If a device found something wrong, that is the error, and not what followed from it.
func (r *run) perform(mode func(*run) (*report, error)) (*report, error) {
	report, err := mode(r)
	r.end()
	if cause := context.Cause(r.ctx); err != nil && cause != errEnded {
		return nil, cause
	}
	return report, err
}

// serve runs a loop of a device until the run ends, then closes what it used; its error ends the run.
func (r *run) serve(loop func() error, closed func()) {
	r.served.Go(func() {
		defer closed()
		if err := loop(); err != nil {
			r.fail(err)
		}
	})
}

var errEnded = errors.New("the run has ended")

// end closes all streams and waits until nothing runs any more. After it the devices' samples may be read.
func (r *run) end() {
	r.fail(errEnded)
	r.served.Wait()
}

// await waits until the condition holds.
func (r *run) await(what string, condition func() bool) error {
	return r.awaitLong(what, r.patience, condition)
}

func (r *run) awaitLong(what string, timeout time.Duration, condition func() bool) error {
	for deadline := time.Now().Add(timeout); !condition(); time.Sleep(pollInterval) {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for this in vain: %s", timeout, what)
		}
	}
	return context.Cause(r.ctx)
}

// each runs f for 0 … n-1, a few at a time, and returns the first error.
func each(n int, f func(i int) error) error {
	const parallel = 32
	indexes := make(chan int)
	failures := make(chan error, parallel)
	for range parallel {
		go func() {
			var failure error
			for i := range indexes {
				if failure == nil {
					failure = f(i)
				}
			}
			failures <- failure
		}()
	}
	for i := range n {
		indexes <- i
	}
	close(indexes)
	var all error
	for range parallel {
		all = errors.Join(all, <-failures)
	}
	return all
}

// measured is what was read at one moment, or what happened between two.
type measured struct {
	elapsed    time.Duration
	count      uint64
	serverCPU  time.Duration
	serviceCPU map[string]time.Duration
	ownCPU     time.Duration
}

// since turns two readings into what happened between them.
func (m measured) since(before measured) measured {
	serviceCPU := maps.Clone(m.serviceCPU)
	for name, earlier := range before.serviceCPU {
		serviceCPU[name] -= earlier
	}
	return measured{
		elapsed:    m.elapsed - before.elapsed,
		count:      m.count - before.count,
		serverCPU:  m.serverCPU - before.serverCPU,
		serviceCPU: serviceCPU,
		ownCPU:     m.ownCPU - before.ownCPU,
	}
}

// and adds what happened in another time.
func (m measured) and(other measured) measured {
	serviceCPU := maps.Clone(other.serviceCPU)
	for name, used := range m.serviceCPU {
		serviceCPU[name] += used
	}
	return measured{
		elapsed:    m.elapsed + other.elapsed,
		count:      m.count + other.count,
		serverCPU:  m.serverCPU + other.serverCPU,
		serviceCPU: serviceCPU,
		ownCPU:     m.ownCPU + other.ownCPU,
	}
}

// load lets the senders send and measures meanwhile: for a time after a warm-up, or until all of a fixed number of messages is
// done. `count` is what the rate is of; `kick` starts the senders; `done` holds when nothing is under way any more.
func (r *run) load(kick func() error, count func() uint64, done func() bool) (measured, error) {
	r.sending.Store(true)
	if r.messages > 0 {
		return r.measure(count, func() error {
			if err := kick(); err != nil {
				return err
			}
			return r.awaitLong("all messages sent, answered and delivered", r.duration+r.patience, done)
		})
	}
	if err := kick(); err != nil {
		return measured{}, err
	}
	if err := r.sleep(r.warmup); err != nil {
		return measured{}, err
	}
	result, err := r.measure(count, func() error { return r.sleep(r.duration) })
	r.sending.Store(false)
	if err == nil && result.count == 0 {
		err = fmt.Errorf("nothing was delivered in %v", r.duration)
	}
	if err != nil {
		return result, err
	}
	return result, r.await("what was under way at the end answered and delivered", done)
}

func (r *run) measure(count func() uint64, meanwhile func() error) (measured, error) {
	before, err := r.reading(count)
	if err != nil {
		return measured{}, err
	}
	r.measuring.Store(true)
	err = meanwhile()
	r.measuring.Store(false)
	if err != nil {
		return measured{}, err
	}
	after, err := r.reading(count)
	return after.since(before), err
}

func (r *run) reading(count func() uint64) (measured, error) {
	now := measured{elapsed: time.Since(r.started), count: count(), ownCPU: ownCPU(), serviceCPU: map[string]time.Duration{}}
	var err error
	now.serverCPU, err = total(r.serverPIDs, processCPU)
	for name, pids := range r.services {
		used, failure := total(pids, processCPU)
		now.serviceCPU[name], err = used, errors.Join(err, failure)
	}
	return now, err
}

func (r *run) sleep(duration time.Duration) error {
	select {
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	case <-time.After(duration):
		return nil
	}
}
