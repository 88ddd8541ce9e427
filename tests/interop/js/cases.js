// What is tried, and what is seen of it.

import { setTimeout as sleep } from "node:timers/promises";
import grpc from "@grpc/grpc-js";
import { failed } from "./stream.js";

export const TEXT = "Grüße, 世界 👋";

export const LEFT_OUT = {
  reflection: "grpc-js has no client of it",
  negotiated_protocol: "grpc-js does not show it; Node's HTTP/2 takes no server that chooses another than h2",
};

export const cases = {
  /** Says hello, sends a message, sees it sent and as an event. */
  async conversation(place) {
    const [one, other] = place.accounts(2);
    const stream = place.connect(one);
    const facts = { is_mine: (await stream.open()).user_id === one.user };
    stream.send(stream.message(other, TEXT));
    while (!("sent" in facts && "text" in facts)) {
      const { body, request_id, sent, event } = await stream.read();
      if (body === "sent") Object.assign(facts, { sent: Number(sent.seq), answers: Number(request_id) });
      if (event?.content.text) Object.assign(facts, { event: Number(event.seq), text: event.content.text.text });
    }
    return facts;
  },

  /** Two devices on one connection write in turns, each when it has read what the other wrote. */
  async ping_pong(place) {
    const [one, two] = place.accounts(2);
    const [first, second] = [place.connect(one), place.connect(two)];
    await first.open();
    await second.open();
    const texts = [];
    for (let number = 0; number < 50; number++) {
      first.send(first.message(two, `ping ${number}`));
      texts.push(await first.text(), await second.text());
      second.send(second.message(one, `pong ${number}`));
      texts.push(await first.text(), await second.text());
    }
    return { texts };
  },

  /** All that is to be said is said at once, and the call's half closed. */
  async half_close(place) {
    const [one, other] = place.accounts(2);
    const stream = place.connect(one);
    stream.send(stream.hello(), stream.message(other, TEXT));
    stream.halfClose();
    const [frames, ending] = await stream.end();
    const answers = frames.filter((frame) => frame.request_id !== "0").map((frame) => frame.body);
    return { answers, disconnect: frames.at(-1).disconnect.code, ...ending };
  },

  /** A call's half is closed before anything was sent. */
  async empty_stream(place) {
    const stream = place.connect(...place.accounts(1));
    stream.halfClose();
    const [frames, ending] = await stream.end();
    return { disconnects: frames.map((frame) => frame.disconnect.code), ...ending };
  },

  /** A call is given up after the Welcome; the server forgets the stream, and the device comes again. */
  async cancellation(place) {
    const [one] = place.accounts(1);
    const streams = [await place.untilStreams(0)];
    const stream = place.connect(one);
    await stream.open();
    streams.push(await place.untilStreams(1));
    stream.call.cancel();
    const [, ending] = await stream.end();
    streams.push(await place.untilStreams(0));
    const again = place.connect(one);
    await again.open();
    again.send(again.message(one, TEXT));
    return { streams, text: await again.text(), ...ending };
  },

  /** A call with a deadline lasts as long. */
  async deadline(place) {
    const began = performance.now();
    const stream = place.connect(...place.accounts(1), { deadline: Date.now() + 1000 });
    await stream.open();
    const [, ending] = await stream.end();
    const took = performance.now() - began;
    await place.untilStreams(0);
    return { took_s: took / 1000, ...ending };
  },

  /** A stream of nobody. */
  async stream_without_token(place) {
    return refused(place, null);
  },

  /** A stream of somebody who forged a token. */
  async stream_with_bad_token(place) {
    return refused(place, forged(place));
  },

  /** A unary call of nobody. */
  async call_without_token(place) {
    return failed(place.unary("ListMessages", null, {}));
  },

  /** A unary call of somebody who forged a token. */
  async call_with_bad_token(place) {
    return failed(place.unary("ListMessages", forged(place), {}));
  },

  /** A method that its service does not have. */
  async unknown_method(place) {
    return failed(place.unaryAt("/chatgrpc.v1.MessageService/Unsend", ...place.accounts(1)));
  },

  /** A service that nobody has. */
  async unknown_service(place) {
    return failed(place.unaryAt("/test.NoService/Do", ...place.accounts(1)));
  },

  /** A batch as large as one may be is taken; what it brought is read again by a unary call, whose reply is large. */
  async largest_batch(place) {
    const [one, other] = place.accounts(2);
    const stream = place.connect(one);
    const bytes = (await stream.open()).limits.batch_bytes_max;
    const frames = batchOf(place, stream, other, bytes);
    stream.send(...frames);
    const facts = { bytes, sent: 0, texts: 0 };
    let chat_id;
    while (facts.sent < frames.length || facts.texts < frames.length) {
      const { body, event, error, disconnect } = await stream.read();
      if (error || disconnect) throw new Error(JSON.stringify(error ?? disconnect));
      if (body === "sent") facts.sent++;
      if (event) chat_id = event.chat_id;
      if (event?.content.text) facts.texts++;
    }
    const page = await place.unary("ListMessages", one, { chat_id, page_size: 100 });
    return { ...facts, page_bytes: place.sizeOf("ListMessagesResponse", page) };
  },

  /** A longer one ends its stream, and harms no other on the same connection. */
  async longer_batch(place) {
    const [one, two] = place.accounts(2);
    const [stream, neighbour] = [place.connect(one), place.connect(two)];
    const bytes = (await stream.open()).limits.batch_bytes_max;
    await neighbour.open();
    stream.send(...batchOf(place, stream, two, bytes + 1));
    const [, ending] = await stream.end();
    neighbour.send(neighbour.message(one, TEXT));
    return { neighbour: await neighbour.text(), ...ending };
  },

  /** A stream whose batches are compressed. */
  async compressed_stream(place) {
    const [one, other] = place.accounts(2);
    const stream = place.compressing().connect(one);
    await stream.open();
    stream.send(stream.message(other, TEXT.repeat(100)));
    return { is_right: (await stream.text()) === TEXT.repeat(100) };
  },

  /** A unary call whose request is compressed. */
  async compressed_call(place) {
    const [one, other] = place.accounts(2);
    const request = { user_id: other.user, content: { text: { text: TEXT.repeat(100) } } };
    const { sent } = await place.compressing().unary("SendMessage", one, request);
    const page = await place.unary("ListMessages", one, { chat_id: sent.chat_id });
    return { is_right: page.events[0].content.text.text === TEXT.repeat(100) };
  },

  /** Fifty devices on one connection, each of which writes and reads. */
  async many_streams(place) {
    await place.untilStreams(0);
    const accounts = place.accounts(50);
    const streams = accounts.map((account) => place.connect(account));
    await Promise.all(streams.map((stream) => stream.open()));
    const opened = await place.untilStreams(50);
    streams.forEach((stream, number) => stream.send(stream.message(accounts[number], accounts[number].user)));
    const told = await Promise.all(streams.map((stream) => stream.text()));
    streams.forEach((stream) => stream.halfClose());
    const endings = await Promise.all(streams.map(async (stream) => (await stream.end())[1].status));
    return { streams: opened, is_right: told.every((text, number) => text === accounts[number].user), endings };
  },

  /** Unary calls on the connection of a stream, to which they bring events. */
  async calls_beside_a_stream(place) {
    const [one, other] = place.accounts(2);
    const stream = place.connect(one);
    await stream.open();
    const told = [];
    let chat_id;
    for (let number = 0; number < 10; number++) {
      const request = { user_id: one.user, content: { text: { text: `call ${number}` } } };
      ({ chat_id } = (await place.unary("SendMessage", other, request)).sent);
      told.push(await stream.text());
    }
    const page = await place.unary("ListMessages", one, { chat_id });
    return { told, listed: page.events.map((event) => Number(event.seq)) };
  },

  /** Health of the server, of a service, and of one that is none. */
  async health(place) {
    const statuses = [];
    for (const service of ["", "chatgrpc.v1.SessionService"]) {
      statuses.push((await place.healthOf(service)).status);
    }
    return { statuses, ...(await failed(place.healthOf("?"))) };
  },

  /** Metadata of the client's own, binary too, disturbs nobody. */
  async metadata(place) {
    const [one] = place.accounts(1);
    const own = new grpc.Metadata();
    own.set("x-trace", "0af7651916cd43dd");
    own.set("x-trace-bin", Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)));
    const stream = place.connect(one, {}, own);
    await stream.open();
    await place.unary("SendMessage", one, { user_id: one.user, content: { text: { text: TEXT } } }, own);
    return { text: await stream.text() };
  },
};

/** Waits until the server has so many streams; returns how many it says. */
export async function untilStreams(place, number, wait) {
  for (const giveUpAt = performance.now() + wait; ; await sleep(20)) {
    const [{ streams }] = (await place.listNodes()).nodes;
    if (streams === number || performance.now() > giveUpAt) return streams;
  }
}

async function refused(place, account) {
  const stream = place.connect(account);
  stream.send(stream.hello());
  const [[{ disconnect }], ending] = await stream.end();
  return { disconnect: disconnect.code, reason: disconnect.reason, ...ending };
}

/** Whose token has somebody else's signature. */
function forged(place) {
  const [one, other] = place.accounts(2);
  const [header, claims] = one.token.split(".");
  return { user: one.user, token: [header, claims, other.token.split(".")[2]].join(".") };
}

/** Messages that together are a batch of exactly this size. */
function batchOf(place, stream, to, bytes) {
  const frames = [];
  while (frames.length < Math.floor((bytes - 20_000) / 60_100)) frames.push(stream.message(to, "x".repeat(60_000)));
  const last = stream.message(to, "x".repeat(20_000));
  frames.push(last);
  last.send.content.text.text += "x".repeat(bytes - place.sizeOf("ConnectRequest", { frames }));
  if (place.sizeOf("ConnectRequest", { frames }) !== bytes) throw new Error("the batch has another size");
  return frames;
}
