package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

const textBytes = 100

// chat is what all devices of one chat together know of it. Whatever one of them learns must fit what the others learned.
type chat struct {
	index   uint32 // names the chat in the texts of its messages
	parties uint32 // that learn the place of each message: its members, and the sender once more by the answer
	// complete, if given, is called as the last of them learns it.
	complete func()

	mutex sync.Mutex
	id    string
	seqs  []uint64 // place in the log of message 0, 1, 2, …; 0 = not known yet
	knows []uint32 // parties that know it
}

// identify checks that a device means this chat; the first one to name an id decides what it is.
func (c *chat) identify(id string) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.id == "" {
		c.id = id
	}
	if c.id != id {
		return fmt.Errorf("cross-talk: chat %s on a device that is in %s only", id, c.id)
	}
	return nil
}

// place records that a device or a sender learned the seq of a message; everyone must learn the same. An answer of a peer's server
// names none: seq 0.
func (c *chat) place(number uint32, seq uint64) error {
	isComplete, err := c.placed(number, seq)
	if isComplete && c.complete != nil {
		c.complete()
	}
	return err
}

func (c *chat) placed(number uint32, seq uint64) (isComplete bool, err error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for uint32(len(c.seqs)) <= number {
		c.seqs = append(c.seqs, 0)
		c.knows = append(c.knows, 0)
	}
	if c.seqs[number] == 0 {
		c.seqs[number] = seq
	}
	if seq != 0 && c.seqs[number] != seq {
		return false, fmt.Errorf("two orders: message %d of %s is seq %d here and seq %d elsewhere", number, c.id, seq, c.seqs[number])
	}
	c.knows[number]++
	return c.knows[number] == c.parties, nil
}

// ending follows what a text says.
var ending = " " + strings.Repeat("x", textBytes-33)

// text makes the content of a message: which one it is, and when it was sent, in nanoseconds since the generator started.
func (c *chat) text(number uint32, sentAt time.Duration) string {
	return fmt.Sprintf("%08x%08x%016x%s", c.index, number, uint64(sentAt), ending)
}

// parse reads what text wrote.
func (c *chat) parse(text []byte) (number uint32, sentAt time.Duration, err error) {
	if len(text) != textBytes {
		return 0, 0, fmt.Errorf("a text of %d bytes in %s; all that were sent have %d", len(text), c.id, textBytes)
	}
	index, errIndex := strconv.ParseUint(string(text[:8]), 16, 32)
	parsed, errNumber := strconv.ParseUint(string(text[8:16]), 16, 32)
	nanoseconds, errTime := strconv.ParseInt(string(text[16:32]), 16, 64)
	if errIndex != nil || errNumber != nil || errTime != nil || string(text[32:]) != ending {
		return 0, 0, fmt.Errorf("a text that nobody sent in %s: %q", c.id, text)
	}
	if uint32(index) != c.index {
		return 0, 0, fmt.Errorf("cross-talk: a message of chat number %d came in chat number %d (%s)", index, c.index, c.id)
	}
	return uint32(parsed), time.Duration(nanoseconds), nil
}
