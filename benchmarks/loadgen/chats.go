package main

import (
	"fmt"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// group is a chat and its members; the first one is its sender.
type group struct {
	chat    *chat
	members []*member
}

// pairs: two users each, two streams each; one sends, the other acknowledges. What counts is messages that have been answered
// and have reached the other.
func (r *run) pairs(count int, window uint32) (*report, error) {
	groups, err := r.joinGroups(count, 2, window)
	if err != nil {
		return nil, err
	}
	for i, group := range groups {
		group.sender().sending.peerUser = r.accounts[2*i+1].user
	}
	complete := func() (messages uint64) {
		for _, group := range groups {
			messages += uint64(group.complete())
		}
		return messages
	}
	return r.converse(groups, complete)
}

// fanout: groups of many members, of whom one sends and all acknowledge. What counts is deliveries to the others.
func (r *run) fanout(count, size int, window uint32) (*report, error) {
	for i := range count {
		if r.peer != "" {
			break // a channel is there when the first one subscribes to it
		}
		if err := r.createGroup(r.target(i, 0), r.accounts[i*size:(i+1)*size]); err != nil {
			return nil, err
		}
	}
	groups, err := r.joinGroups(count, size, window)
	if err != nil {
		return nil, err
	}
	delivered := func() (deliveries uint64) {
		for _, group := range groups {
			for _, member := range group.members[1:] {
				deliveries += uint64(member.received.Load())
			}
		}
		return deliveries
	}
	return r.converse(groups, delivered)
}

// createGroup creates the group of these accounts by the unary call; the first one is its owner.
func (r *run) createGroup(target string, accounts []account) error {
	conn, err := dial(target)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := &pb.CreateGroupRequest{Title: "Benchmark"}
	for _, account := range accounts[1:] {
		request.MemberUserIds = append(request.MemberUserIds, account.user)
	}
	response, err := pb.NewChatServiceClient(conn).CreateGroup(accounts[0].authorized(r.ctx), request)
	if err != nil {
		return fmt.Errorf("creating a group: %w", err)
	}
	if failure := response.GetError(); failure != nil {
		return fmt.Errorf("creating a group: %v: %s", failure.Code, failure.Message)
	}
	if members := len(response.GetChat().GetMembers()); members != len(accounts) {
		return fmt.Errorf("creating a group: %d members instead of %d", members, len(accounts))
	}
	return nil
}

// joinGroups connects one device of each account and waits until all are up to date.
func (r *run) joinGroups(count, size int, window uint32) ([]*group, error) {
	groups := make([]*group, count)
	for i := range groups {
		groups[i] = r.newGroup(i, size, window)
	}
	err := each(count*size, func(i int) error {
		return groups[i/size].members[i%size].join(r.accounts[i], "loadgen")
	})
	if err != nil {
		return nil, err
	}
	return groups, r.await("every device is up to date", func() bool {
		return every(groups, func(g *group) bool {
			return every(g.members, (*member).isSynced)
		})
	})
}

// newGroup makes the members of chat number `index`, not connected yet.
func (r *run) newGroup(index, size int, window uint32) *group {
	g := &group{chat: &chat{index: uint32(index), parties: uint32(size) + 1}}
	for i := range size {
		g.members = append(g.members, &member{run: r, target: r.target(index, i), chat: g.chat})
	}
	g.sender().sending = newSending(window, r.messages)
	g.chat.complete = g.sender().messageComplete
	return g
}

// converse sends one message in each chat, so that every device knows it, then loads the server, and checks at the end that
// nothing is missing.
func (r *run) converse(groups []*group, count func() uint64) (*report, error) {
	first := func(sender *member) error { return sender.do(sender.queueMessage) }
	if err := eachSender(groups, first); err != nil {
		return nil, err
	}
	allComplete := func() bool { return every(groups, (*group).isComplete) }
	if err := r.await("the first message of each chat delivered", allComplete); err != nil {
		return nil, err
	}
	result, err := r.load(func() error { return eachSender(groups, (*member).start) }, count, allComplete)
	r.end()
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, missing(groups...))
	}
	return r.chatReport(result, groups), nil
}

// eachSender has every sender begin something.
func eachSender(groups []*group, something func(*member) error) error {
	for _, group := range groups {
		if err := something(group.sender()); err != nil {
			return err
		}
	}
	return nil
}

// chatReport sums up what the members saw. The run must have ended.
func (r *run) chatReport(result measured, groups []*group) *report {
	var deliveries, answers []samples
	for _, group := range groups {
		answers = append(answers, group.sender().sending.answers)
		for _, member := range group.members[1:] {
			deliveries = append(deliveries, member.deliveries)
		}
	}
	delivered, answered := join(deliveries...), join(answers...)
	report := result.report()
	report.P50Ms, report.P99Ms = delivered.percentileMs(0.50), delivered.percentileMs(0.99)
	report.AnswerP50Ms, report.AnswerP99Ms = answered.percentileMs(0.50), answered.percentileMs(0.99)
	return report
}

func (g *group) sender() *member { return g.members[0] }

// complete is the number of messages that are answered and have reached every member, the sender too.
func (g *group) complete() uint32 {
	least := g.sender().sending.answered.Load()
	for _, member := range g.members {
		least = min(least, member.received.Load())
	}
	return least
}

// isComplete holds when nothing is under way and, if there is a limit while the run sends, it has been reached.
func (g *group) isComplete() bool {
	sender := g.sender()
	sent := sender.sentCount()
	reached := !sender.run.sending.Load() || sent >= sender.sending.limit
	return reached && g.complete() == sent
}

// missing says what has not arrived, for a person who looks for the reason.
func missing(groups ...*group) (text string) {
	for _, group := range groups {
		sent, answered, complete := group.sender().sentCount(), group.sender().sending.answered.Load(), group.complete()
		if complete < sent {
			text += fmt.Sprintf("\n  chat %d: %d sent, %d answered, %d have reached every member",
				group.chat.index, sent, answered, complete)
		}
	}
	return text
}

func every[T any](all []T, holds func(T) bool) bool {
	for _, one := range all {
		if !holds(one) {
			return false
		}
	}
	return true
}
