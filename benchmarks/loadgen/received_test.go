package main

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/centrifugal/protocol"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

func encode(t testing.TB, message proto.Message) []byte {
	t.Helper()
	encoded, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

func textFrame(text string) *pb.ServerFrame {
	return eventFrame(&pb.ChatEvent{
		ChatId: "g.chat", Seq: 300, MessageId: make([]byte, 16), SenderUserId: "user", SentAtMs: 1 << 40, Content: newText(text),
	})
}

func eventFrame(event *pb.ChatEvent) *pb.ServerFrame {
	return &pb.ServerFrame{Body: &pb.ServerFrame_Event{Event: event}}
}

// framesOfEachKind are encoded frames, usual and unusual ones.
func framesOfEachKind(t testing.TB) map[string][]byte {
	text, other := encode(t, textFrame("hello")), encode(t, textFrame("bye"))
	created := &pb.Content{Body: &pb.Content_ChatCreated{ChatCreated: &pb.ChatCreatedContent{}}}
	sent := encode(t, &pb.ServerFrame{RequestId: 7, Body: &pb.ServerFrame_Sent{Sent: &pb.SendResult{ChatId: "g.chat", Seq: 9}}})
	seqAsBytes := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), []byte("seq"))
	return map[string][]byte{
		"a text":                          text,
		"an empty text":                   encode(t, textFrame("")),
		"a text in a frame with an id":    encode(t, &pb.ServerFrame{RequestId: 3, Body: textFrame("hello").Body}),
		"a text without a chat":           encode(t, eventFrame(&pb.ChatEvent{Seq: 1, Content: newText("hello")})),
		"a reply":                         encode(t, eventFrame(&pb.ChatEvent{ChatId: "g.chat", Content: &pb.Content{Body: newText("hello").Body, ReplyToSeq: 5}})),
		"an event that is no text":        encode(t, eventFrame(&pb.ChatEvent{ChatId: "g.chat", Seq: 2, Content: created})),
		"an event without content":        encode(t, eventFrame(&pb.ChatEvent{ChatId: "g.chat", Seq: 2})),
		"an answer":                       sent,
		"an empty frame":                  {},
		"two events":                      slices.Concat(text, other),
		"an event, then an answer":        slices.Concat(text, sent),
		"an answer, then an event":        slices.Concat(sent, text),
		"an event and an unknown field":   protowire.AppendFixed32(protowire.AppendTag(slices.Clone(text), 999, protowire.Fixed32Type), 1),
		"an event whose seq has no value": protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), seqAsBytes),
		"half a frame":                    text[:len(text)/2],
		"a field of number 0":             {0, 0},
	}
}

// checkReadAlike compares what is read of a frame with what the decoder of protobuf makes of it.
func checkReadAlike(t *testing.T, encoded []byte) {
	t.Helper()
	whole := &pb.ServerFrame{}
	failure := proto.Unmarshal(encoded, whole)
	read, err := readFrame(encoded)
	switch expected := ofFrame(whole); {
	case failure != nil && err == nil:
		// What is not checked is not decoded, so that more may pass; but nothing that is checked may differ.
		if read.other != nil || !strings.Contains(failure.Error(), "UTF-8") {
			t.Errorf("%x was read, and cannot be decoded: %v", encoded, failure)
		}
	case failure == nil && err != nil:
		t.Errorf("%x was not read: %v", encoded, err)
	case failure == nil && (!proto.Equal(read.other, expected.other) || !sameEvent(read.event, expected.event)):
		t.Errorf("%x was read as %+v, not %+v", encoded, read, expected)
	}
}

func sameEvent(a, b event) bool {
	return bytes.Equal(a.chatID, b.chatID) && a.seq == b.seq && bytes.Equal(a.text, b.text) && (a.text == nil) == (b.text == nil)
}

func TestFramesAreReadAsTheyAreDecoded(t *testing.T) {
	for name, encoded := range framesOfEachKind(t) {
		t.Run(name, func(t *testing.T) { checkReadAlike(t, encoded) })
	}
	if _, isText := readTextFrame(encode(t, textFrame("hello"))); !isText {
		t.Error("a text was decoded whole")
	}
}

func TestDamagedFramesAreReadAsTheyAreDecoded(t *testing.T) {
	for _, encoded := range framesOfEachKind(t) {
		for range 2_000 {
			if damaged := slices.Clone(encoded); len(damaged) > 0 {
				damaged[rand.IntN(len(damaged))] = byte(rand.Uint32())
				checkReadAlike(t, damaged[:len(damaged)-rand.IntN(2)])
			}
		}
	}
}

func TestABatchIsReadInItsOrderAndDamageIsFound(t *testing.T) {
	batch := encode(t, &pb.ConnectResponse{Frames: []*pb.ServerFrame{textFrame("a"), {RequestId: 5}, textFrame("b")}})
	var reader batchReader
	for range 2 { // the second time into what the first one used
		frames, err := reader.read(batch)
		if err != nil || len(frames) != 3 || string(frames[0].event.text) != "a" || frames[1].other.GetRequestId() != 5 ||
			string(frames[2].event.text) != "b" {
			t.Fatalf("read as %+v, %v", frames, err)
		}
	}
	for _, damaged := range [][]byte{batch[:len(batch)-1], {byte(batchFrame), 2, 0xff, 0xff}} {
		if frames, err := reader.read(damaged); err == nil {
			t.Errorf("%x was read as %+v", damaged, frames)
		}
	}
}

func TestAPublicationIsReadAsItIsDecoded(t *testing.T) {
	publication := &protocol.Publication{Offset: 300, Data: []byte("hello"), Info: &protocol.ClientInfo{User: "user", Client: "client"}}
	w := &centrifugoWire{}
	for name, c := range map[string]struct {
		reply *protocol.Reply
		lean  bool
	}{
		"a publication":         {&protocol.Reply{Push: &protocol.Push{Channel: "chat", Pub: publication}}, true},
		"one in a reply":        {&protocol.Reply{Id: 3, Push: &protocol.Push{Channel: "chat", Pub: publication}}, false},
		"one without a channel": {&protocol.Reply{Push: &protocol.Push{Pub: publication}}, false},
		"one without data":      {&protocol.Reply{Push: &protocol.Push{Channel: "chat", Pub: &protocol.Publication{Offset: 3}}}, false},
	} {
		encoded, err := c.reply.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if _, lean := readPublication(encoded); lean != c.lean {
			t.Errorf("%s: read where it lies: %v", name, lean)
		}
		frames, err := w.frames(c.reply)
		if err != nil {
			t.Fatal(err)
		}
		w.received = nil
		if err := w.takeReply(encoded); err != nil || len(w.received) != 1 || !sameEvent(w.received[0].event, ofFrame(frames[0]).event) {
			t.Errorf("%s was read as %+v, %v", name, w.received, err)
		}
	}
}
