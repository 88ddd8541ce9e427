// A client on @grpc/grpc-js: runs the cases of tests/interop/test_interop.py, and prints what it saw of each.
//
//     node interop.js ADDRESS ACCOUNTS [CA]
//
// ACCOUNTS is a file with a user and a token on each line; with CA, certificates to trust, it speaks TLS. The other folders have
// the same program on other libraries.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { protoPath as healthProto } from "grpc-health-check";
import { LEFT_OUT, cases, untilStreams } from "./cases.js";
import { Stream } from "./stream.js";

const WAIT_MS = 30_000;
const PROTOS = fileURLToPath(new URL("../../../protos", import.meta.url));

const options = { includeDirs: [PROTOS], keepCase: true, longs: String, defaults: true, oneofs: true };
const protos = ["session", "message_service", "node_service"].map((name) => `chatgrpc/v1/${name}.proto`);
const { chatgrpc } = grpc.loadPackageDefinition(protoLoader.loadSync(protos, options));
const { health } = grpc.loadPackageDefinition(protoLoader.loadSync(healthProto, options)).grpc;

/** The server, one connection to it, and users who have not been there yet. */
class Place {
  #accounts;
  #credentials;
  #address;
  #compressing = null;
  #streams = [];

  constructor(address, accounts, credentials, options = {}) {
    [this.#address, this.#accounts, this.#credentials] = [address, accounts, credentials];
    this.session = new chatgrpc.v1.SessionService(address, credentials, options);
    // All clients of a server share its connection, if their options are the same.
    this.messages = new chatgrpc.v1.MessageService(address, credentials, options);
    this.nodes = new chatgrpc.v1.NodeService(address, credentials, options);
    this.health = new health.v1.Health(address, credentials, options);
  }

  /** Users of the case's own. */
  accounts(number) {
    return this.#accounts.splice(0, number);
  }

  /** The same, with messages compressed: grpc-js says so by connection. */
  compressing() {
    const options = { "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip };
    this.#compressing ??= new Place(this.#address, this.#accounts, this.#credentials, options);
    return this.#compressing;
  }

  connect(account, options = {}, own = new grpc.Metadata()) {
    const metadata = metadataOf(account, own);
    const stream = new Stream(this.session.Connect(metadata, { deadline: Date.now() + WAIT_MS, ...options }));
    this.#streams.push(stream);
    return stream;
  }

  /** Ends what a case leaves open. */
  giveUpStreams() {
    this.#compressing?.giveUpStreams();
    for (const stream of this.#streams.splice(0)) stream.call.cancel();
  }

  unary(method, account, request, own = new grpc.Metadata()) {
    return replyOf(this.messages, method, request, metadataOf(account, own));
  }

  /** Calls a method that no proto has. */
  unaryAt(path, account) {
    const nothing = () => Buffer.alloc(0);
    const options = { deadline: Date.now() + WAIT_MS };
    return new Promise((resolve, reject) => {
      this.messages.makeUnaryRequest(path, nothing, nothing, {}, metadataOf(account), options, (error, reply) =>
        error ? reject(error) : resolve(reply),
      );
    });
  }

  listNodes() {
    return replyOf(this.nodes, "ListNodes", {}, new grpc.Metadata());
  }

  healthOf(service) {
    return replyOf(this.health, "check", { service }, new grpc.Metadata());
  }

  untilStreams(number) {
    return untilStreams(this, number, WAIT_MS);
  }

  /** The size of a message of the API, serialized. */
  sizeOf(name, message) {
    const serialize = {
      ConnectRequest: chatgrpc.v1.SessionService.service.Connect.requestSerialize,
      ListMessagesResponse: chatgrpc.v1.MessageService.service.ListMessages.responseSerialize,
    }[name];
    return serialize(message).length;
  }

  close() {
    this.#compressing?.close();
    for (const client of [this.session, this.messages, this.nodes, this.health]) client.close();
  }
}

function metadataOf(account, own = new grpc.Metadata()) {
  const metadata = own.clone();
  if (account !== null) metadata.set("authorization", `Bearer ${account.token}`);
  return metadata;
}

function replyOf(client, method, request, metadata) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline: Date.now() + WAIT_MS }, (error, reply) =>
      error ? reject(error) : resolve(reply),
    );
  });
}

function accountsOf(file) {
  return readFileSync(file, "utf8")
    .trim()
    .split("\n")
    .map((line) => line.split(" "))
    .map(([user, token]) => ({ user, token }));
}

const [address, accountsFile, caFile] = process.argv.slice(2);
const credentials = caFile ? grpc.credentials.createSsl(readFileSync(caFile)) : grpc.credentials.createInsecure();
const place = new Place(address, accountsOf(accountsFile), credentials);
for (const [name, run] of Object.entries(cases)) {
  let facts;
  try {
    facts = await run(place);
  } catch (error) {
    facts = { failed: String(error.stack) };
  }
  place.giveUpStreams();
  console.log(JSON.stringify({ case: name, ...facts }));
}
for (const [name, why] of Object.entries(LEFT_OUT)) {
  console.log(JSON.stringify({ case: name, left_out: why }));
}
place.close();
