package main

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

// received is a frame from a server. Nearly all of them are events with a text, and the load generator must not be what limits a
// server: of these only what is checked is read, where it lies; any other frame is decoded whole.
type received struct {
	event event
	other *pb.ServerFrame // anything but an event; nil = an event
}

// event is what is checked of an event of a chat. Its bytes hold until the next batch is received.
type event struct {
	chatID []byte
	seq    uint64
	text   []byte // nil = the event has no text
}

// batchReader reads batches of chatgrpc; what it returns holds until it reads the next one.
type batchReader struct{ frames []received }

func (r *batchReader) read(batch []byte) ([]received, error) {
	r.frames = r.frames[:0]
	var failure error
	isBatch := eachField(batch, func(tag uint64, _ uint64, value []byte) bool {
		if tag != batchFrame {
			return true
		}
		var frame received
		frame, failure = readFrame(value)
		r.frames = append(r.frames, frame)
		return failure == nil
	})
	if !isBatch && failure == nil {
		failure = fmt.Errorf("a batch that cannot be decoded: %x", batch)
	}
	return r.frames, failure
}

// Fields by number and type, as they stand before their value on the wire: what has another type is an unknown field.
const (
	batchFrame   = 1<<3 | uint64(protowire.BytesType)
	frameEvent   = 2<<3 | uint64(protowire.BytesType)
	eventChatID  = 1<<3 | uint64(protowire.BytesType)
	eventSeq     = 2<<3 | uint64(protowire.VarintType)
	eventContent = 8<<3 | uint64(protowire.BytesType)
	contentText  = 1<<3 | uint64(protowire.BytesType)
	textText     = 1<<3 | uint64(protowire.BytesType)
)

// readFrame reads a ServerFrame.
func readFrame(encoded []byte) (received, error) {
	if event, isText := readTextFrame(encoded); isText {
		return received{event: event}, nil
	}
	frame := &pb.ServerFrame{}
	if err := proto.Unmarshal(encoded, frame); err != nil {
		return received{}, fmt.Errorf("a frame that cannot be decoded: %w", err)
	}
	return ofFrame(frame), nil
}

// ofFrame is what is received with a frame that is decoded already.
func ofFrame(frame *pb.ServerFrame) received {
	whole := frame.GetEvent()
	if whole == nil {
		return received{other: frame}
	}
	read := event{chatID: []byte(whole.ChatId), seq: whole.Seq}
	if text, isText := whole.Content.GetBody().(*pb.Content_Text); isText {
		read.text = append([]byte{}, text.Text.GetText()...)
	}
	return received{event: read}
}

// readTextFrame reads a frame that is an event with a text, and nothing else; false = it is another, or unusual in any way.
func readTextFrame(encoded []byte) (read event, isText bool) {
	wellFormed := eachField(encoded, func(tag uint64, _ uint64, value []byte) bool {
		return tag == frameEvent && read.chatID == nil && readEvent(value, &read)
	})
	return read, wellFormed && read.text != nil
}

func readEvent(encoded []byte, read *event) bool {
	return eachField(encoded, func(tag uint64, varint uint64, value []byte) bool {
		switch tag {
		case eventChatID:
			read.chatID = value
		case eventSeq:
			read.seq = varint
		case eventContent:
			return read.text == nil && readContent(value, read)
		}
		return true
	}) && read.chatID != nil
}

func readContent(encoded []byte, read *event) bool {
	return eachField(encoded, func(tag uint64, _ uint64, value []byte) bool {
		return tag == contentText && read.text == nil && readText(value, read)
	})
}

func readText(encoded []byte, read *event) bool {
	return eachField(encoded, func(tag uint64, _ uint64, value []byte) bool {
		if tag == textText {
			read.text = value
		}
		return true
	})
}

// eachField calls `take` with each field of an encoded message, until it returns false: its number and type, and its value, if that
// is a varint or bytes. False = a field was not taken, or the message cannot be decoded.
func eachField(encoded []byte, take func(tag uint64, varint uint64, value []byte) bool) bool {
	for len(encoded) > 0 {
		tag, length := protowire.ConsumeVarint(encoded)
		if length < 0 {
			return false
		}
		number, kind := protowire.DecodeTag(tag)
		encoded = encoded[length:]
		var varint uint64
		var value []byte
		switch kind {
		case protowire.VarintType:
			varint, length = protowire.ConsumeVarint(encoded)
		case protowire.BytesType:
			value, length = protowire.ConsumeBytes(encoded)
		default:
			length = protowire.ConsumeFieldValue(number, kind, encoded)
		}
		if length < 0 || number < protowire.MinValidNumber || !take(tag, varint, value) {
			return false
		}
		encoded = encoded[length:]
	}
	return true
}
