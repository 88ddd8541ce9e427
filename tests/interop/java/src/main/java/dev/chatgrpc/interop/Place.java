package dev.chatgrpc.interop;

import dev.chatgrpc.v1.ListNodesRequest;
import dev.chatgrpc.v1.MessageServiceGrpc;
import dev.chatgrpc.v1.MessageServiceGrpc.MessageServiceBlockingStub;
import dev.chatgrpc.v1.NodeServiceGrpc;
import dev.chatgrpc.v1.SessionServiceGrpc;
import dev.chatgrpc.v1.SessionServiceGrpc.SessionServiceStub;
import io.grpc.ManagedChannel;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;

/** The server, one connection to it, and users who have not been there yet. */
record Place(ManagedChannel channel, Deque<Account> unused) {
  /** A user of the case's own. */
  Account account() {
    return unused.remove();
  }

  List<Account> accounts(int number) {
    return Stream.generate(this::account).limit(number).toList();
  }

  SessionServiceStub session() {
    return SessionServiceGrpc.newStub(channel).withDeadlineAfter(Interop.WAIT_S, TimeUnit.SECONDS);
  }

  MessageServiceBlockingStub messages() {
    return MessageServiceGrpc.newBlockingStub(channel).withDeadlineAfter(Interop.WAIT_S, TimeUnit.SECONDS);
  }

  /** Waits until the server has so many streams; returns how many it says. */
  int untilStreams(int number) throws InterruptedException {
    var nodes = NodeServiceGrpc.newBlockingStub(channel);
    long giveUpAt = System.nanoTime() + TimeUnit.SECONDS.toNanos(Interop.WAIT_S);
    while (true) {
      int streams = nodes.listNodes(ListNodesRequest.getDefaultInstance()).getNodes(0).getStreams();
      if (streams == number || System.nanoTime() > giveUpAt) {
        return streams;
      }
      Thread.sleep(20);
    }
  }
}
