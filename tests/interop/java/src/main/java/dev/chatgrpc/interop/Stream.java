package dev.chatgrpc.interop;

import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import dev.chatgrpc.v1.Ack;
import dev.chatgrpc.v1.ChatEvent;
import dev.chatgrpc.v1.ClientFrame;
import dev.chatgrpc.v1.ConnectRequest;
import dev.chatgrpc.v1.ConnectResponse;
import dev.chatgrpc.v1.Content;
import dev.chatgrpc.v1.Hello;
import dev.chatgrpc.v1.SendMessage;
import dev.chatgrpc.v1.ServerFrame;
import dev.chatgrpc.v1.ServerFrame.BodyCase;
import dev.chatgrpc.v1.SessionServiceGrpc.SessionServiceStub;
import dev.chatgrpc.v1.TextContent;
import dev.chatgrpc.v1.Welcome;
import dev.chatgrpc.v1.WriteKey;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.security.SecureRandom;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** A call of SessionService.Connect. */
final class Stream implements AutoCloseable {
  private static final SecureRandom RANDOM = new SecureRandom();

  /** Batches, and at last a Throwable, or Status.OK. */
  private final BlockingQueue<Object> received = new LinkedBlockingQueue<>();

  private final ArrayDeque<ServerFrame> frames = new ArrayDeque<>();

  /** The last event that came, by chat. */
  private final Map<String, Long> seqs = new HashMap<>();

  private ClientCallStreamObserver<ConnectRequest> call;
  private long lastRequest = 0;
  private boolean isHalfClosed = false;

  Stream(SessionServiceStub stub) {
    stub.connect(
        new ClientResponseObserver<ConnectRequest, ConnectResponse>() {
          @Override
          public void beforeStart(ClientCallStreamObserver<ConnectRequest> started) {
            call = started;
          }

          @Override
          public void onNext(ConnectResponse batch) {
            received.add(batch);
          }

          @Override
          public void onError(Throwable error) {
            received.add(error);
          }

          @Override
          public void onCompleted() {
            received.add(Status.OK);
          }
        });
  }

  /** Gives the call up, if it has not ended. */
  @Override
  public void close() {
    call.cancel("the case is over", null);
  }

  /** Sends a batch. */
  void send(ClientFrame... batch) {
    call.onNext(ConnectRequest.newBuilder().addAllFrames(Arrays.asList(batch)).build());
  }

  void halfClose() {
    isHalfClosed = true;
    call.onCompleted();
  }

  ClientFrame hello() {
    Hello hello = Hello.newBuilder().setDeviceId("interop").build();
    return ClientFrame.newBuilder().setRequestId(++lastRequest).setHello(hello).build();
  }

  /** A text to a user. */
  ClientFrame message(Account to, String text) {
    byte[] id = new byte[16];
    RANDOM.nextBytes(id);
    WriteKey.Builder key = WriteKey.newBuilder().setClientMessageId(ByteString.copyFrom(id));
    seqs.values().forEach(key::setSeenSeq); // there is one chat in each case
    SendMessage.Builder send = SendMessage.newBuilder().setUserId(to.user()).setKey(key).setContent(contentOf(text));
    return ClientFrame.newBuilder().setRequestId(++lastRequest).setSend(send).build();
  }

  /** The next frame, if the stream has not ended; then its end is left in the queue. Acknowledges events. */
  private Optional<ServerFrame> read() throws InterruptedException {
    while (frames.isEmpty()) {
      Object next = received.poll(Interop.WAIT_S, TimeUnit.SECONDS);
      if (!(next instanceof ConnectResponse batch)) {
        if (next == null) {
          throw new IllegalStateException("nothing came");
        }
        received.add(next);
        return Optional.empty();
      }
      frames.addAll(batch.getFramesList());
      List<ClientFrame> acks = new ArrayList<>();
      for (ServerFrame frame : frames) {
        if (frame.hasEvent()) {
          ChatEvent event = frame.getEvent();
          seqs.put(event.getChatId(), event.getSeq());
          Ack ack = Ack.newBuilder().setChatId(event.getChatId()).setSeq(event.getSeq()).build();
          acks.add(ClientFrame.newBuilder().setAck(ack).build());
        }
      }
      if (!acks.isEmpty() && !isHalfClosed) {
        send(acks.toArray(ClientFrame[]::new));
      }
    }
    return Optional.of(frames.remove());
  }

  /** The next frame, which is no error. */
  ServerFrame next() throws InterruptedException {
    ServerFrame frame = read().orElseThrow(() -> new IllegalStateException("the stream has ended: " + received.peek()));
    if (frame.hasError() || frame.hasDisconnect()) {
      throw new IllegalStateException("something else was to come, not: " + frame);
    }
    return frame;
  }

  /** The next frame of this kind; what comes before it is dropped. */
  ServerFrame until(BodyCase arm) throws InterruptedException {
    while (true) {
      ServerFrame frame = next();
      if (frame.getBodyCase() == arm) {
        return frame;
      }
    }
  }

  /** The text of the next message. */
  String text() throws InterruptedException {
    while (true) {
      Content content = until(BodyCase.EVENT).getEvent().getContent();
      if (content.hasText()) {
        return content.getText().getText();
      }
    }
  }

  /** Says Hello, and waits until the stream is in step. */
  Welcome open() throws InterruptedException {
    send(hello());
    Welcome welcome = until(BodyCase.WELCOME).getWelcome();
    until(BodyCase.SYNC_COMPLETE);
    return welcome;
  }

  /** What still came, and how the call ended. */
  record End(List<ServerFrame> frames, Map<String, Object> facts) {}

  /** Reads all frames that still come. */
  End end() throws InterruptedException {
    List<ServerFrame> last = new ArrayList<>();
    for (Optional<ServerFrame> frame = read(); frame.isPresent(); frame = read()) {
      last.add(frame.get());
    }
    return new End(last, received.peek() instanceof Throwable error ? endingOf(error) : facts("status", 0));
  }

  static Content contentOf(String text) {
    return Content.newBuilder().setText(TextContent.newBuilder().setText(text)).build();
  }

  /** The status of a call, and what explains it. */
  static Map<String, Object> endingOf(Throwable error) {
    Map<String, Object> ending = facts("status", Status.fromThrowable(error).getCode().value());
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    for (com.google.protobuf.Any detail : status == null ? List.<com.google.protobuf.Any>of() : status.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        try {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          ending.putAll(facts("error_reason", info.getReason(), "domain", info.getDomain()));
        } catch (com.google.protobuf.InvalidProtocolBufferException malformed) {
          throw new IllegalStateException(malformed);
        }
      }
    }
    return ending;
  }

  /** What was seen: names and values in turns. */
  static Map<String, Object> facts(Object... namesAndValues) {
    Map<String, Object> facts = new LinkedHashMap<>();
    for (int i = 0; i < namesAndValues.length; i += 2) {
      facts.put((String) namesAndValues[i], namesAndValues[i + 1]);
    }
    return facts;
  }
}
