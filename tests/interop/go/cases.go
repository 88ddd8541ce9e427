package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "github.com/chatgrpc/chatgrpc/benchmarks/loadgen/chatgrpcv1"
)

var cases = []struct {
	name string
	run  func(context.Context, *place) facts
}{
	{"conversation", conversation},
	{"ping_pong", pingPong},
	{"half_close", halfClose},
	{"empty_stream", emptyStream},
	{"cancellation", cancellation},
	{"deadline", deadline},
	{"stream_without_token", streamWithoutToken},
	{"stream_with_bad_token", streamWithBadToken},
	{"call_without_token", callWithoutToken},
	{"call_with_bad_token", callWithBadToken},
	{"unknown_method", unknownMethod},
	{"unknown_service", unknownService},
	{"largest_batch", largestBatch},
	{"longer_batch", longerBatch},
	{"compressed_stream", compressedStream},
	{"compressed_call", compressedCall},
	{"many_streams", manyStreams},
	{"calls_beside_a_stream", callsBesideAStream},
	{"health", health},
	{"reflection", reflected},
	{"metadata", ownMetadata},
	{"negotiated_protocol", negotiatedProtocol},
}

// conversation says hello, sends a message, sees it sent and as an event.
func conversation(ctx context.Context, p *place) facts {
	one, other := p.account(), p.account()
	s := p.connect(one.authorized(ctx))
	defer s.cancel()
	seen := facts{"is_mine": s.open().UserId == one.user}
	s.send(s.message(other, text))
	for seen["sent"] == nil || seen["text"] == nil {
		frame := must(s.read())
		switch arm(frame) {
		case "sent":
			seen.and(facts{"sent": frame.GetSent().Seq, "answers": frame.RequestId})
		case "event":
			if told := frame.GetEvent().Content.GetText(); told != nil {
				seen.and(facts{"event": frame.GetEvent().Seq, "text": told.Text})
			}
		case "error", "disconnect":
			panic(frame.String())
		}
	}
	return seen
}

// pingPong lets two devices on one connection write in turns, each when it has read what the other wrote.
func pingPong(ctx context.Context, p *place) facts {
	one, two := p.account(), p.account()
	first, second := p.connect(one.authorized(ctx)), p.connect(two.authorized(ctx))
	defer first.cancel()
	defer second.cancel()
	first.open()
	second.open()
	var texts []string
	for number := range 50 {
		first.send(first.message(two, fmt.Sprint("ping ", number)))
		texts = append(texts, first.text(), second.text())
		second.send(second.message(one, fmt.Sprint("pong ", number)))
		texts = append(texts, first.text(), second.text())
	}
	return facts{"texts": texts}
}

// halfClose says all that is to be said at once, and closes the call's half.
func halfClose(ctx context.Context, p *place) facts {
	one, other := p.account(), p.account()
	s := p.connect(one.authorized(ctx))
	defer s.cancel()
	s.send(s.hello(), s.message(other, text))
	s.halfClose()
	frames, ending := s.end()
	var answers []any
	for _, frame := range frames {
		if frame.RequestId != 0 {
			answers = append(answers, arm(frame))
		}
	}
	return facts{"answers": answers, "disconnect": frames[len(frames)-1].GetDisconnect().GetCode()}.and(ending)
}

// emptyStream closes a call's half before anything was sent.
func emptyStream(ctx context.Context, p *place) facts {
	s := p.connect(p.account().authorized(ctx))
	defer s.cancel()
	s.halfClose()
	frames, ending := s.end()
	var codes []pb.DisconnectCode
	for _, frame := range frames {
		codes = append(codes, frame.GetDisconnect().GetCode())
	}
	return facts{"disconnects": codes}.and(ending)
}

// cancellation gives a call up after the Welcome; the server forgets the stream, and the device comes again.
func cancellation(ctx context.Context, p *place) facts {
	one := p.account()
	streams := []uint32{p.untilStreams(ctx, 0)}
	s := p.connect(one.authorized(ctx))
	s.open()
	streams = append(streams, p.untilStreams(ctx, 1))
	s.cancel()
	_, ending := s.end()
	streams = append(streams, p.untilStreams(ctx, 0))
	again := p.connect(one.authorized(ctx))
	defer again.cancel()
	again.open()
	again.send(again.message(one, text))
	return facts{"streams": streams, "text": again.text()}.and(ending)
}

// deadline makes a call with a deadline, which lasts as long.
func deadline(ctx context.Context, p *place) facts {
	began := time.Now()
	hurried, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s := p.connect(p.account().authorized(hurried))
	defer s.cancel()
	s.open()
	_, ending := s.end()
	took := time.Since(began)
	p.untilStreams(ctx, 0)
	return facts{"took_s": took.Seconds()}.and(ending)
}

func refused(ctx context.Context, p *place) facts {
	s := p.connect(ctx)
	defer s.cancel()
	s.send(s.hello())
	frames, ending := s.end()
	disconnect := frames[0].GetDisconnect()
	return facts{"disconnect": disconnect.GetCode(), "reason": disconnect.GetReason()}.and(ending)
}

// streamWithoutToken opens a stream of nobody.
func streamWithoutToken(ctx context.Context, p *place) facts { return refused(ctx, p) }

// streamWithBadToken opens a stream of somebody who forged a token.
func streamWithBadToken(ctx context.Context, p *place) facts { return refused(forged(ctx, p), p) }

// forged returns the context of a call with a token of somebody else's signature.
func forged(ctx context.Context, p *place) context.Context {
	parts, others := strings.Split(p.account().token, "."), strings.Split(p.account().token, ".")
	return account{token: strings.Join([]string{parts[0], parts[1], others[2]}, ".")}.authorized(ctx)
}

// callWithoutToken makes a unary call of nobody.
func callWithoutToken(ctx context.Context, p *place) facts {
	_, err := p.messages().ListMessages(ctx, &pb.ListMessagesRequest{})
	return failed(err)
}

// callWithBadToken makes a unary call of somebody who forged a token.
func callWithBadToken(ctx context.Context, p *place) facts {
	_, err := p.messages().ListMessages(forged(ctx, p), &pb.ListMessagesRequest{})
	return failed(err)
}

// unknownMethod calls a method that its service does not have.
func unknownMethod(ctx context.Context, p *place) facts {
	ctx = p.account().authorized(ctx)
	return failed(p.conn.Invoke(ctx, "/chatgrpc.v1.MessageService/Unsend", &emptypb.Empty{}, &emptypb.Empty{}))
}

// unknownService calls a service that nobody has.
func unknownService(ctx context.Context, p *place) facts {
	ctx = p.account().authorized(ctx)
	return failed(p.conn.Invoke(ctx, "/test.NoService/Do", &emptypb.Empty{}, &emptypb.Empty{}))
}

// batchOf makes messages that together are a batch of exactly this size.
func batchOf(s *stream, to account, sizeBytes int) []*pb.ClientFrame {
	var frames []*pb.ClientFrame
	for range (sizeBytes - 20_000) / 60_100 {
		frames = append(frames, s.message(to, strings.Repeat("x", 60_000)))
	}
	last := s.message(to, strings.Repeat("x", 20_000))
	frames = append(frames, last)
	short := sizeBytes - proto.Size(&pb.ConnectRequest{Frames: frames})
	last.GetSend().GetContent().GetText().Text += strings.Repeat("x", short)
	if size := proto.Size(&pb.ConnectRequest{Frames: frames}); size != sizeBytes {
		panic(fmt.Sprintf("the batch has %d bytes", size))
	}
	return frames
}

// largestBatch sends a batch as large as one may be, and reads what it brought again by a unary call, whose reply is large.
func largestBatch(ctx context.Context, p *place) facts {
	one, other := p.account(), p.account()
	s := p.connect(one.authorized(ctx))
	defer s.cancel()
	batchBytes := int(s.open().Limits.BatchBytesMax)
	frames := batchOf(s, other, batchBytes)
	s.send(frames...)
	sent, texts, chatID := 0, 0, ""
	for sent < len(frames) || texts < len(frames) {
		frame := must(s.read())
		switch arm(frame) {
		case "sent":
			sent++
		case "event":
			chatID = frame.GetEvent().ChatId
			if frame.GetEvent().Content.GetText() != nil {
				texts++
			}
		case "error", "disconnect":
			panic(frame.String())
		}
	}
	page := must(p.messages().ListMessages(one.authorized(ctx), &pb.ListMessagesRequest{ChatId: chatID, PageSize: 100}))
	return facts{"bytes": batchBytes, "sent": sent, "texts": texts, "page_bytes": proto.Size(page)}
}

// longerBatch sends a longer one, which ends its stream, and harms no other on the same connection.
func longerBatch(ctx context.Context, p *place) facts {
	one, two := p.account(), p.account()
	s, neighbour := p.connect(one.authorized(ctx)), p.connect(two.authorized(ctx))
	defer s.cancel()
	defer neighbour.cancel()
	batchBytes := int(s.open().Limits.BatchBytesMax)
	neighbour.open()
	// It may be refused before all of it is sent; how the call ended says the next read.
	_ = s.Send(&pb.ConnectRequest{Frames: batchOf(s, two, batchBytes+1)})
	_, ending := s.end()
	neighbour.send(neighbour.message(one, text))
	return facts{"neighbour": neighbour.text()}.and(ending)
}

// compressedStream opens a stream whose batches are compressed.
func compressedStream(ctx context.Context, p *place) facts {
	one, other := p.account(), p.account()
	s := p.connect(one.authorized(ctx), grpc.UseCompressor(gzip.Name))
	defer s.cancel()
	s.open()
	s.send(s.message(other, strings.Repeat(text, 100)))
	return facts{"is_right": s.text() == strings.Repeat(text, 100)}
}

// compressedCall makes a unary call whose request is compressed.
func compressedCall(ctx context.Context, p *place) facts {
	one, other := p.account(), p.account()
	ctx = one.authorized(ctx)
	request := &pb.SendMessageRequest{
		To: &pb.SendMessageRequest_UserId{UserId: other.user}, Content: contentOf(strings.Repeat(text, 100)),
	}
	sent := must(p.messages().SendMessage(ctx, request, grpc.UseCompressor(gzip.Name))).GetSent()
	page := must(p.messages().ListMessages(ctx, &pb.ListMessagesRequest{ChatId: sent.GetChatId()}))
	return facts{"is_right": page.Events[0].GetContent().GetText().GetText() == strings.Repeat(text, 100)}
}

// manyStreams opens fifty devices on one connection, each of which writes and reads.
func manyStreams(ctx context.Context, p *place) facts {
	p.untilStreams(ctx, 0)
	var accounts []account
	var streams []*stream
	for range 50 {
		one := p.account()
		accounts = append(accounts, one)
		streams = append(streams, p.connect(one.authorized(ctx)))
	}
	for _, s := range streams {
		s.open()
	}
	opened := p.untilStreams(ctx, 50)
	for number, s := range streams {
		s.send(s.message(accounts[number], accounts[number].user))
	}
	isRight := true
	for number, s := range streams {
		isRight = s.text() == accounts[number].user && isRight
	}
	var endings []any
	for _, s := range streams {
		s.halfClose()
	}
	for _, s := range streams {
		_, ending := s.end()
		endings = append(endings, ending["status"])
	}
	return facts{"streams": opened, "is_right": isRight, "endings": endings, "connections": p.dials.Load()}
}

// callsBesideAStream makes unary calls on the connection of a stream, to which they bring events.
func callsBesideAStream(ctx context.Context, p *place) facts {
	one, other := p.account(), p.account()
	s := p.connect(one.authorized(ctx))
	defer s.cancel()
	s.open()
	var told []string
	var listed []uint64
	chatID := ""
	for number := range 10 {
		request := &pb.SendMessageRequest{
			To: &pb.SendMessageRequest_UserId{UserId: one.user}, Content: contentOf(fmt.Sprint("call ", number)),
		}
		chatID = must(p.messages().SendMessage(other.authorized(ctx), request)).GetSent().GetChatId()
		told = append(told, s.text())
	}
	page := must(p.messages().ListMessages(one.authorized(ctx), &pb.ListMessagesRequest{ChatId: chatID}))
	for _, event := range page.Events {
		listed = append(listed, event.Seq)
	}
	return facts{"told": told, "listed": listed}
}

// health asks for the health of the server, of a service, and of one that is none.
func health(ctx context.Context, p *place) facts {
	client := grpc_health_v1.NewHealthClient(p.conn)
	var statuses []grpc_health_v1.HealthCheckResponse_ServingStatus
	for _, name := range []string{"", "chatgrpc.v1.SessionService"} {
		statuses = append(statuses, must(client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: name})).Status)
	}
	_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "?"})
	return facts{"statuses": statuses}.and(failed(err))
}

// reflected asks what the server says that it serves.
func reflected(ctx context.Context, p *place) facts {
	call := must(reflection.NewServerReflectionClient(p.conn).ServerReflectionInfo(ctx))
	list := &reflection.ServerReflectionRequest_ListServices{}
	check(call.Send(&reflection.ServerReflectionRequest{MessageRequest: list}))
	var services []string
	for _, service := range must(call.Recv()).GetListServicesResponse().GetService() {
		services = append(services, service.Name)
	}
	sort.Strings(services)
	symbol := &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "chatgrpc.v1.SessionService"}
	check(call.Send(&reflection.ServerReflectionRequest{MessageRequest: symbol}))
	var file descriptorpb.FileDescriptorProto
	check(proto.Unmarshal(must(call.Recv()).GetFileDescriptorResponse().GetFileDescriptorProto()[0], &file))
	check(call.CloseSend())
	return facts{"services": services, "file": file.GetName()}
}

// ownMetadata sends metadata of the client's own, binary too, which disturbs nobody.
func ownMetadata(ctx context.Context, p *place) facts {
	one := p.account()
	binary := make([]byte, 256)
	for number := range binary {
		binary[number] = byte(number)
	}
	ctx = metadata.AppendToOutgoingContext(one.authorized(ctx), "x-trace", "0af7651916cd43dd", "x-trace-bin", string(binary))
	s := p.connect(ctx)
	defer s.cancel()
	s.open()
	request := &pb.SendMessageRequest{To: &pb.SendMessageRequest_UserId{UserId: one.user}, Content: contentOf(text)}
	_ = must(p.messages().SendMessage(ctx, request))
	return facts{"text": s.text()}
}

// negotiatedProtocol says what TLS agreed on by ALPN.
func negotiatedProtocol(ctx context.Context, p *place) facts {
	if !p.isTLS {
		return facts{"left_out": "there is no TLS"}
	}
	var at peer.Peer
	_ = must(pb.NewNodeServiceClient(p.conn).ListNodes(ctx, &pb.ListNodesRequest{}, grpc.Peer(&at)))
	return facts{"protocol": at.AuthInfo.(credentials.TLSInfo).State.NegotiatedProtocol}
}
