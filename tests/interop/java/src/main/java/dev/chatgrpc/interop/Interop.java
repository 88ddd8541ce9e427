package dev.chatgrpc.interop;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Map;

/**
 * A client on grpc-java: runs the cases of tests/interop/test_interop.py, and prints what it saw of each.
 *
 * <p>Arguments are ADDRESS ACCOUNTS [CA]. ACCOUNTS is a file with a user and a token on each line; with CA, certificates to
 * trust, it speaks TLS. The other folders have the same program on other libraries.
 */
public final class Interop {
  static final long WAIT_S = 30;
  private static final Gson GSON = new GsonBuilder().disableHtmlEscaping().create();
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  private Interop() {}

  public static void main(String[] arguments) throws IOException {
    Deque<Account> accounts = new ArrayDeque<>();
    for (String line : Files.readAllLines(Path.of(arguments[1]))) {
      String[] parts = line.split(" ");
      accounts.add(new Account(parts[0], parts[1]));
    }
    ChannelCredentials credentials =
        arguments.length > 2
            ? TlsChannelCredentials.newBuilder().trustManager(new File(arguments[2])).build()
            : InsecureChannelCredentials.create();
    ManagedChannel channel = Grpc.newChannelBuilder(arguments[0], credentials).build();
    Place place = new Place(channel, accounts);
    Cases.ALL.forEach((name, run) -> print(name, seen(run, place)));
    Cases.LEFT_OUT.forEach((name, why) -> print(name, Stream.facts("left_out", why)));
    channel.shutdownNow();
  }

  /** What a case saw; what goes wrong in one is its result. */
  private static Map<String, Object> seen(Cases.Case run, Place place) {
    try {
      return run.in(place);
    } catch (Exception error) {
      StringWriter trace = new StringWriter();
      error.printStackTrace(new PrintWriter(trace));
      return Stream.facts("failed", trace.toString());
    }
  }

  private static void print(String name, Map<String, Object> facts) {
    facts.put("case", name);
    OUT.println(GSON.toJson(facts));
  }
}
