// client.ts DIRECTORY ws[s]://HOST:PORT TOKEN_FILE NAME [--read-only] [--ca FILE]
//
// Offers one directory to a fuse-gated server, and serves it until SIGINT or SIGTERM. Written from docs/api alone.

import * as fs from "node:fs";
import { parseArgs } from "node:util";
import { Malformed, decode, encode, type Value } from "./msgpack.js";
import { Errno, WrongArguments } from "./posix.js";
import { Tree } from "./tree.js";
import { Refused, WebSocket, connect } from "./websocket.js";

const SUBPROTOCOL = "fuse-gate.v1";
const MAX_MESSAGE = 4 * 2 ** 20;
const MOST_IN_FLIGHT = 1024;
const MOST_BYTES_IN_FLIGHT = 256 * 2 ** 20;
const PING_EVERY = 10_000;
const DEAD_AFTER = 45_000;

/** The server broke the protocol. */
class Violation extends Error {
  constructor(readonly code: number, reason: string) {
    super(reason);
  }
}

class Client {
  private welcomed = false;
  private leaving = false;

  constructor(private readonly socket: WebSocket, private readonly tree: Tree, private readonly ended: (status: number) => void) {}

  start(name: string, root: string, readOnly: boolean): void {
    this.socket.listen(this);
    const offer = {
      export: name,
      program: "fuse-gate-example-client/0.1.0",
      root: Buffer.from(root),
      capabilities: readOnly ? ["read-only"] : [],
    };
    this.socket.send(encode([["hello", offer]]));
    const timer = setInterval(() => {
      if (Date.now() - this.socket.lastHeard > DEAD_AFTER) this.socket.abort();
      else this.socket.ping();
    }, PING_EVERY);
    timer.unref();
  }

  leave(): void {
    this.leaving = true;
    this.socket.close(1000, "goodbye");
  }

  onClosed(code: number, reason: string): void {
    if (!this.leaving) console.error(`the session ended: ${code} ${reason}`);
    this.ended(this.leaving ? 0 : 1);
  }

  onMessage(data: Buffer): void {
    try {
      this.handle(framesOf(data));
    } catch (error) {
      if (error instanceof Malformed || error instanceof WrongArguments) this.socket.close(1007, error.message);
      else if (error instanceof Violation) this.socket.close(error.code, error.message);
      else throw error;
    }
  }

  private handle(frames: Value[][]): void {
    let replies: Buffer[] = [];
    let size = 0;
    const flush = () => {
      if (replies.length) this.socket.send(Buffer.concat([arrayHead(replies.length), ...replies]));
      replies = [];
      size = 0;
    };
    for (const [tag, ...fields] of frames) {
      if (tag === "welcome" && !this.welcomed) this.welcome(fields[0]);
      else if (tag === "ask" && this.welcomed) {
        const reply = encode(this.reply(fields[0], fields[1], fields[2]));
        if (size + reply.length > MAX_MESSAGE - 16) flush();
        replies.push(reply);
        size += reply.length;
      } else if (tag === "cancel") continue; // Each request is answered before the next is looked at: it always comes too late.
      else if (tag === "welcome" || tag === "ask") throw new Violation(1002, `a frame out of order: ${tag}`);
      else throw new Malformed("an unknown tag");
    }
    flush();
  }

  private welcome(terms: Value | undefined): void {
    const { mount, max_in_flight, max_bytes_in_flight } = mapOf(terms);
    if (!(Number(max_in_flight) <= MOST_IN_FLIGHT && Number(max_bytes_in_flight) <= MOST_BYTES_IN_FLIGHT)) {
      throw new Violation(1008, "more in flight than this client holds");
    }
    this.welcomed = true;
    console.log(`mounted at ${mount}`);
  }

  private reply(id: Value | undefined, operation: Value | undefined, args: Value | undefined): Value {
    if ((typeof id !== "number" && typeof id !== "bigint") || typeof operation !== "string" || !Array.isArray(args)) {
      throw new Malformed("an ask that is none");
    }
    try {
      return ["reply", id, null, this.tree.carryOut(operation, args)];
    } catch (error) {
      if (error instanceof WrongArguments) throw error;
      const code = error instanceof Errno ? error.code : (error as NodeJS.ErrnoException).code;
      return ["reply", id, code && /^E[A-Z0-9]+$/.test(code) ? code : "EIO", null];
    }
  }
}

function framesOf(data: Buffer): Value[][] {
  const frames = decode(data);
  if (!Array.isArray(frames) || !frames.every((frame): frame is Value[] => Array.isArray(frame) && frame.length > 0)) {
    throw new Malformed("not an array of frames");
  }
  return frames;
}

function mapOf(value: Value | undefined): { [key: string]: Value } {
  if (value === null || typeof value !== "object" || Array.isArray(value) || Buffer.isBuffer(value)) throw new Malformed("no map");
  return value as { [key: string]: Value };
}

/** The head of an array whose items are encoded already. */
function arrayHead(length: number): Buffer {
  const head = Buffer.alloc(5, 0xdd);
  head.writeUInt32BE(length, 1);
  return head;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { "read-only": { type: "boolean", default: false }, ca: { type: "string" } },
  });
  const [directory, server, tokenFile, name] = positionals;
  if (!directory || !server || !tokenFile || !name) {
    console.error("usage: client.js DIRECTORY ws[s]://HOST:PORT TOKEN_FILE NAME [--read-only] [--ca FILE]");
    process.exit(2);
  }
  const readOnly = values["read-only"] ?? false;
  const token = fs.readFileSync(tokenFile, "ascii").trim();
  const ca = values.ca === undefined ? undefined : fs.readFileSync(values.ca);
  const tree = new Tree(directory, readOnly);
  try {
    const socket = await connect(new URL(server), SUBPROTOCOL, token, MAX_MESSAGE, ca);
    const client = new Client(socket, tree, (status) => process.exit(status));
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => client.leave());
    client.start(name, fs.realpathSync(directory), readOnly);
  } catch (error) {
    const refused = error instanceof Refused;
    console.error(refused ? `the server refused: ${error.status} ${error.message}` : `cannot connect: ${(error as Error).message}`);
    process.exit(refused ? 3 : 1);
  }
}

await main();
