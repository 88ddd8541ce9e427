// A call of SessionService.Connect, and how calls end.

import { randomBytes } from "node:crypto";
import protobuf from "protobufjs";

// grpc-js hands over the bytes of the details; what they are says google/rpc/status.proto.
const { root } = protobuf.parse(
  `
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  `,
  { keepCase: true },
);
const Status = root.lookupType("google.rpc.Status");
const ErrorInfo = root.lookupType("google.rpc.ErrorInfo");

/** The status of a call, and what explains it. */
export function endingOf(error) {
  const ending = { status: error.code };
  for (const bytes of error.metadata.get("grpc-status-details-bin")) {
    for (const detail of Status.decode(bytes).details) {
      if (detail.type_url === "type.googleapis.com/google.rpc.ErrorInfo") {
        const { reason, domain } = ErrorInfo.decode(detail.value);
        Object.assign(ending, { error_reason: reason, domain });
      }
    }
  }
  return ending;
}

/** How a call fails, which must. */
export async function failed(reply) {
  try {
    await reply;
  } catch (error) {
    return endingOf(error);
  }
  throw new Error("the call did not fail");
}

export class Stream {
  #frames = [];
  #seqs = {}; // the last event that came, by chat
  #lastRequest = 0;
  #ending = null;
  #isHalfClosed = false;
  #wake = () => {};

  constructor(call) {
    this.call = call;
    call.on("data", (batch) => this.#take(batch.frames));
    call.on("error", () => {}); // its status comes too
    call.on("status", (status) => {
      this.#ending = endingOf(status);
      this.#wake();
    });
  }

  #take(frames) {
    this.#frames.push(...frames);
    const acks = [];
    for (const { event } of frames) {
      if (event) {
        this.#seqs[event.chat_id] = event.seq;
        acks.push({ ack: { chat_id: event.chat_id, seq: event.seq } });
      }
    }
    if (acks.length > 0 && !this.#isHalfClosed) this.send(...acks);
    this.#wake();
  }

  /** Sends a batch. */
  send(...frames) {
    this.call.write({ frames });
  }

  halfClose() {
    this.#isHalfClosed = true;
    this.call.end();
  }

  hello() {
    return { request_id: ++this.#lastRequest, hello: { device_id: "interop" } };
  }

  /** A text to a user. */
  message(to, text) {
    const [seen_seq = 0] = Object.values(this.#seqs); // there is one chat in each case
    const key = { client_message_id: randomBytes(16), seen_seq };
    return { request_id: ++this.#lastRequest, send: { user_id: to.user, key, content: { text: { text } } } };
  }

  /** The next frame; null when the stream has ended. */
  async read() {
    while (this.#frames.length === 0 && this.#ending === null) {
      await new Promise((wake) => (this.#wake = wake));
    }
    return this.#frames.shift() ?? null;
  }

  /** The next frame of this kind; what comes before it is dropped. */
  async until(arm) {
    for (;;) {
      const frame = await this.read();
      if (frame === null) throw new Error(`${arm} was to come, not the end: ${JSON.stringify(this.#ending)}`);
      if (frame.body === arm) return frame;
      if (frame.error || frame.disconnect) throw new Error(`${arm} was to come, not: ${JSON.stringify(frame)}`);
    }
  }

  /** The text of the next message. */
  async text() {
    for (;;) {
      const { event } = await this.until("event");
      if (event.content.text) return event.content.text.text;
    }
  }

  /** Says Hello, and waits until the stream is in step. */
  async open() {
    this.send(this.hello());
    const { welcome } = await this.until("welcome");
    await this.until("sync_complete");
    return welcome;
  }

  /** Reads all frames that still come; returns them, and how the call ended. */
  async end() {
    const frames = [];
    for (let frame; (frame = await this.read()) !== null; ) frames.push(frame);
    return [frames, this.#ending];
  }
}
