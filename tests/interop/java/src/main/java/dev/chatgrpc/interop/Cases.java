package dev.chatgrpc.interop;

import static dev.chatgrpc.interop.Stream.contentOf;
import static dev.chatgrpc.interop.Stream.endingOf;
import static dev.chatgrpc.interop.Stream.facts;

import com.google.protobuf.ByteString;
import com.google.protobuf.DescriptorProtos.FileDescriptorProto;
import com.google.protobuf.Empty;
import com.google.protobuf.InvalidProtocolBufferException;
import dev.chatgrpc.v1.ChatEvent;
import dev.chatgrpc.v1.ClientFrame;
import dev.chatgrpc.v1.ConnectRequest;
import dev.chatgrpc.v1.Disconnect;
import dev.chatgrpc.v1.ListMessagesRequest;
import dev.chatgrpc.v1.ListMessagesResponse;
import dev.chatgrpc.v1.MessageServiceGrpc.MessageServiceBlockingStub;
import dev.chatgrpc.v1.SendMessageRequest;
import dev.chatgrpc.v1.SendResult;
import dev.chatgrpc.v1.ServerFrame;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.health.v1.HealthGrpc.HealthBlockingStub;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.reflection.v1alpha.ServerReflectionGrpc;
import io.grpc.reflection.v1alpha.ServerReflectionRequest;
import io.grpc.reflection.v1alpha.ServerReflectionResponse;
import io.grpc.reflection.v1alpha.ServiceResponse;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** What is tried, and what is seen of it. */
final class Cases {
  /** One of them. */
  interface Case {
    Map<String, Object> in(Place place) throws Exception;
  }

  static final String TEXT = "Grüße, 世界 👋";
  static final Map<String, Case> ALL = new LinkedHashMap<>();
  static final Map<String, String> LEFT_OUT =
      Map.of("negotiated_protocol", "grpc-java does not show it; it takes no server that chooses another than h2");

  static {
    ALL.put("conversation", Cases::conversation);
    ALL.put("ping_pong", Cases::pingPong);
    ALL.put("half_close", Cases::halfClose);
    ALL.put("empty_stream", Cases::emptyStream);
    ALL.put("cancellation", Cases::cancellation);
    ALL.put("deadline", Cases::deadline);
    ALL.put("stream_without_token", place -> refused(new Stream(place.session())));
    ALL.put("stream_with_bad_token", place -> refused(new Stream(forged(place).calls(place.session()))));
    ALL.put("call_without_token", place -> failed(() -> list(place.messages(), "")));
    ALL.put("call_with_bad_token", place -> failed(() -> list(forged(place).calls(place.messages()), "")));
    ALL.put("unknown_method", place -> failed(() -> call(place, "chatgrpc.v1.MessageService/Unsend")));
    ALL.put("unknown_service", place -> failed(() -> call(place, "test.NoService/Do")));
    ALL.put("largest_batch", Cases::largestBatch);
    ALL.put("longer_batch", Cases::longerBatch);
    ALL.put("compressed_stream", Cases::compressedStream);
    ALL.put("compressed_call", Cases::compressedCall);
    ALL.put("many_streams", Cases::manyStreams);
    ALL.put("calls_beside_a_stream", Cases::callsBesideAStream);
    ALL.put("health", Cases::health);
    ALL.put("reflection", Cases::reflection);
    ALL.put("metadata", Cases::ownMetadata);
  }

  private Cases() {}

  /** Says hello, sends a message, sees it sent and as an event. */
  private static Map<String, Object> conversation(Place place) throws InterruptedException {
    Account one = place.account();
    try (Stream stream = new Stream(one.calls(place.session()))) {
      Map<String, Object> facts = facts("is_mine", stream.open().getUserId().equals(one.user()));
      stream.send(stream.message(place.account(), TEXT));
      while (!facts.containsKey("sent") || !facts.containsKey("text")) {
        ServerFrame frame = stream.next();
        ChatEvent event = frame.getEvent();
        if (frame.hasSent()) {
          facts.putAll(facts("sent", frame.getSent().getSeq(), "answers", frame.getRequestId()));
        } else if (event.getContent().hasText()) {
          facts.putAll(facts("event", event.getSeq(), "text", event.getContent().getText().getText()));
        }
      }
      return facts;
    }
  }

  /** Two devices on one connection write in turns, each when it has read what the other wrote. */
  private static Map<String, Object> pingPong(Place place) throws InterruptedException {
    Account one = place.account();
    Account two = place.account();
    List<String> texts = new ArrayList<>();
    try (Stream first = new Stream(one.calls(place.session()));
        Stream second = new Stream(two.calls(place.session()))) {
      first.open();
      second.open();
      for (int number = 0; number < 50; number++) {
        first.send(first.message(two, "ping " + number));
        texts.addAll(List.of(first.text(), second.text()));
        second.send(second.message(one, "pong " + number));
        texts.addAll(List.of(first.text(), second.text()));
      }
    }
    return facts("texts", texts);
  }

  /** All that is to be said is said at once, and the call's half closed. */
  private static Map<String, Object> halfClose(Place place) throws InterruptedException {
    Stream stream = new Stream(place.account().calls(place.session()));
    stream.send(stream.hello(), stream.message(place.account(), TEXT));
    stream.halfClose();
    Stream.End end = stream.end();
    List<String> answers =
        end.frames().stream()
            .filter(frame -> frame.getRequestId() != 0)
            .map(frame -> frame.getBodyCase().name().toLowerCase())
            .toList();
    Disconnect disconnect = end.frames().get(end.frames().size() - 1).getDisconnect();
    end.facts().putAll(facts("answers", answers, "disconnect", disconnect.getCodeValue()));
    return end.facts();
  }

  /** A call's half is closed before anything was sent. */
  private static Map<String, Object> emptyStream(Place place) throws InterruptedException {
    Stream stream = new Stream(place.account().calls(place.session()));
    stream.halfClose();
    Stream.End end = stream.end();
    end.facts().put("disconnects", end.frames().stream().map(frame -> frame.getDisconnect().getCodeValue()).toList());
    return end.facts();
  }

  /** A call is given up after the Welcome; the server forgets the stream, and the device comes again. */
  private static Map<String, Object> cancellation(Place place) throws InterruptedException {
    Account one = place.account();
    List<Integer> streams = new ArrayList<>(List.of(place.untilStreams(0)));
    Stream stream = new Stream(one.calls(place.session()));
    stream.open();
    streams.add(place.untilStreams(1));
    stream.close();
    Map<String, Object> facts = stream.end().facts();
    streams.add(place.untilStreams(0));
    try (Stream again = new Stream(one.calls(place.session()))) {
      again.open();
      again.send(again.message(one, TEXT));
      facts.putAll(facts("streams", streams, "text", again.text()));
      return facts;
    }
  }

  /** A call with a deadline lasts as long. */
  private static Map<String, Object> deadline(Place place) throws InterruptedException {
    long began = System.nanoTime();
    Stream stream = new Stream(place.account().calls(place.session()).withDeadlineAfter(1, TimeUnit.SECONDS));
    stream.open();
    Map<String, Object> facts = stream.end().facts();
    facts.put("took_s", (System.nanoTime() - began) / 1e9);
    place.untilStreams(0);
    return facts;
  }

  private static Map<String, Object> refused(Stream stream) throws InterruptedException {
    stream.send(stream.hello());
    Stream.End end = stream.end();
    Disconnect disconnect = end.frames().get(0).getDisconnect();
    end.facts().putAll(facts("disconnect", disconnect.getCodeValue(), "reason", disconnect.getReason()));
    return end.facts();
  }

  /** Whose token has somebody else's signature. */
  private static Account forged(Place place) {
    Account one = place.account();
    String[] parts = one.token().split("\\.");
    return new Account(one.user(), String.join(".", parts[0], parts[1], place.account().token().split("\\.")[2]));
  }

  /** How a call fails, which must. */
  private static Map<String, Object> failed(Runnable call) {
    try {
      call.run();
    } catch (StatusRuntimeException error) {
      return endingOf(error);
    }
    throw new IllegalStateException("the call did not fail");
  }

  /** Calls a method that no proto has. */
  private static void call(Place place, String path) {
    MethodDescriptor<Empty, Empty> method =
        MethodDescriptor.<Empty, Empty>newBuilder()
            .setType(MethodDescriptor.MethodType.UNARY)
            .setFullMethodName(path)
            .setRequestMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .setResponseMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .build();
    var stub = place.account().calls(place.messages());
    ClientCalls.blockingUnaryCall(stub.getChannel(), method, stub.getCallOptions(), Empty.getDefaultInstance());
  }

  private static ListMessagesResponse list(MessageServiceBlockingStub stub, String chatId) {
    return stub.listMessages(ListMessagesRequest.newBuilder().setChatId(chatId).setPageSize(100).build());
  }

  /** Messages that together are a batch of exactly this size. */
  private static ClientFrame[] batchOf(Stream stream, Account to, int bytes) {
    List<ClientFrame> frames = new ArrayList<>();
    while (frames.size() < (bytes - 20_000) / 60_100) {
      frames.add(stream.message(to, "x".repeat(60_000)));
    }
    ClientFrame.Builder last = stream.message(to, "x".repeat(20_000)).toBuilder();
    int size = ConnectRequest.newBuilder().addAllFrames(frames).addFrames(last).build().getSerializedSize();
    last.getSendBuilder().setContent(contentOf("x".repeat(20_000 + bytes - size)));
    frames.add(last.build());
    if (ConnectRequest.newBuilder().addAllFrames(frames).build().getSerializedSize() != bytes) {
      throw new IllegalStateException("the batch has another size");
    }
    return frames.toArray(ClientFrame[]::new);
  }

  /** A batch as large as one may be is taken; what it brought is read again by a unary call, whose reply is large. */
  private static Map<String, Object> largestBatch(Place place) throws InterruptedException {
    Account one = place.account();
    try (Stream stream = new Stream(one.calls(place.session()))) {
      int bytes = stream.open().getLimits().getBatchBytesMax();
      ClientFrame[] frames = batchOf(stream, place.account(), bytes);
      stream.send(frames);
      int sent = 0;
      int texts = 0;
      String chatId = "";
      while (sent < frames.length || texts < frames.length) {
        ServerFrame frame = stream.next();
        if (frame.hasSent()) {
          sent++;
        } else if (frame.getEvent().getContent().hasText()) {
          texts++;
          chatId = frame.getEvent().getChatId();
        }
      }
      int pageBytes = list(one.calls(place.messages()), chatId).getSerializedSize();
      return facts("bytes", bytes, "sent", sent, "texts", texts, "page_bytes", pageBytes);
    }
  }

  /** A longer one ends its stream, and harms no other on the same connection. */
  private static Map<String, Object> longerBatch(Place place) throws InterruptedException {
    Account one = place.account();
    Account two = place.account();
    try (Stream stream = new Stream(one.calls(place.session()));
        Stream neighbour = new Stream(two.calls(place.session()))) {
      int bytes = stream.open().getLimits().getBatchBytesMax();
      neighbour.open();
      stream.send(batchOf(stream, two, bytes + 1));
      Map<String, Object> facts = stream.end().facts();
      neighbour.send(neighbour.message(one, TEXT));
      facts.put("neighbour", neighbour.text());
      return facts;
    }
  }

  /** A stream whose batches are compressed. */
  private static Map<String, Object> compressedStream(Place place) throws InterruptedException {
    try (Stream stream = new Stream(place.account().calls(place.session()).withCompression("gzip"))) {
      stream.open();
      stream.send(stream.message(place.account(), TEXT.repeat(100)));
      return facts("is_right", stream.text().equals(TEXT.repeat(100)));
    }
  }

  /** A unary call whose request is compressed. */
  private static Map<String, Object> compressedCall(Place place) {
    Account one = place.account();
    var messages = one.calls(place.messages());
    SendResult sent = messages.withCompression("gzip").sendMessage(requestOf(place.account(), TEXT.repeat(100))).getSent();
    String text = list(messages, sent.getChatId()).getEvents(0).getContent().getText().getText();
    return facts("is_right", text.equals(TEXT.repeat(100)));
  }

  private static SendMessageRequest requestOf(Account to, String text) {
    return SendMessageRequest.newBuilder().setUserId(to.user()).setContent(contentOf(text)).build();
  }

  /** Fifty devices on one connection, each of which writes and reads. */
  private static Map<String, Object> manyStreams(Place place) throws InterruptedException {
    place.untilStreams(0);
    List<Account> accounts = place.accounts(50);
    List<Stream> streams = accounts.stream().map(account -> new Stream(account.calls(place.session()))).toList();
    for (Stream stream : streams) {
      stream.open();
    }
    int opened = place.untilStreams(50);
    for (int i = 0; i < streams.size(); i++) {
      streams.get(i).send(streams.get(i).message(accounts.get(i), accounts.get(i).user()));
    }
    boolean isRight = true;
    for (int i = 0; i < streams.size(); i++) {
      isRight &= streams.get(i).text().equals(accounts.get(i).user());
    }
    streams.forEach(Stream::halfClose);
    List<Object> endings = new ArrayList<>();
    for (Stream stream : streams) {
      endings.add(stream.end().facts().get("status"));
    }
    return facts("streams", opened, "is_right", isRight, "endings", endings);
  }

  /** Unary calls on the connection of a stream, to which they bring events. */
  private static Map<String, Object> callsBesideAStream(Place place) throws InterruptedException {
    Account one = place.account();
    var others = place.account().calls(place.messages());
    List<String> told = new ArrayList<>();
    String chatId = "";
    try (Stream stream = new Stream(one.calls(place.session()))) {
      stream.open();
      for (int number = 0; number < 10; number++) {
        chatId = others.sendMessage(requestOf(one, "call " + number)).getSent().getChatId();
        told.add(stream.text());
      }
    }
    List<ChatEvent> page = list(one.calls(place.messages()), chatId).getEventsList();
    return facts("told", told, "listed", page.stream().map(ChatEvent::getSeq).toList());
  }

  /** Health of the server, of a service, and of one that is none. */
  private static Map<String, Object> health(Place place) {
    HealthBlockingStub stub = HealthGrpc.newBlockingStub(place.channel());
    List<Integer> statuses = new ArrayList<>();
    for (String service : List.of("", "chatgrpc.v1.SessionService")) {
      statuses.add(stub.check(HealthCheckRequest.newBuilder().setService(service).build()).getStatusValue());
    }
    Map<String, Object> facts = failed(() -> stub.check(HealthCheckRequest.newBuilder().setService("?").build()));
    facts.put("statuses", statuses);
    return facts;
  }

  /** What the server says that it serves. */
  private static Map<String, Object> reflection(Place place) throws InterruptedException, InvalidProtocolBufferException {
    BlockingQueue<ServerReflectionResponse> replies = new LinkedBlockingQueue<>();
    StreamObserver<ServerReflectionRequest> call =
        ServerReflectionGrpc.newStub(place.channel())
            .serverReflectionInfo(
                new StreamObserver<>() {
                  @Override
                  public void onNext(ServerReflectionResponse reply) {
                    replies.add(reply);
                  }

                  @Override
                  public void onError(Throwable error) {
                    replies.add(ServerReflectionResponse.getDefaultInstance());
                  }

                  @Override
                  public void onCompleted() {}
                });
    call.onNext(ServerReflectionRequest.newBuilder().setListServices("*").build());
    call.onNext(ServerReflectionRequest.newBuilder().setFileContainingSymbol("chatgrpc.v1.SessionService").build());
    List<ServiceResponse> services = replies.take().getListServicesResponse().getServiceList();
    ByteString file = replies.take().getFileDescriptorResponse().getFileDescriptorProto(0);
    call.onCompleted();
    return facts(
        "services", services.stream().map(ServiceResponse::getName).sorted().toList(),
        "file", FileDescriptorProto.parseFrom(file).getName());
  }

  /** Metadata of the client's own, binary too, disturbs nobody. */
  private static Map<String, Object> ownMetadata(Place place) throws InterruptedException {
    byte[] bytes = new byte[256];
    for (int i = 0; i < bytes.length; i++) {
      bytes[i] = (byte) i;
    }
    Metadata metadata = new Metadata();
    metadata.put(Metadata.Key.of("x-trace", Metadata.ASCII_STRING_MARSHALLER), "0af7651916cd43dd");
    metadata.put(Metadata.Key.of("x-trace-bin", Metadata.BINARY_BYTE_MARSHALLER), bytes);
    var own = MetadataUtils.newAttachHeadersInterceptor(metadata);
    Account one = place.account();
    try (Stream stream = new Stream(one.calls(place.session()).withInterceptors(own))) {
      stream.open();
      one.calls(place.messages()).withInterceptors(own).sendMessage(requestOf(one, TEXT));
      return facts("text", stream.text());
    }
  }
}
