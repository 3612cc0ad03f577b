// A WebSocket client (RFC 6455): the upgrade, and binary messages either way. No extensions.

import { createHash, randomBytes } from "node:crypto";
import * as http from "node:http";
import * as https from "node:https";
import type { Duplex } from "node:stream";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10;

export class Refused extends Error {
  constructor(readonly status: number, text: string) {
    super(text);
  }
}

export interface Listener {
  onMessage(data: Buffer): void;
  /** Once, however it ended: with the code of the close frame, or 1006 where there was none. */
  onClosed(code: number, reason: string): void;
}

/** The connection after the upgrade. Raises Refused for an answer that is not 101. */
export function connect(url: URL, subprotocol: string, token: string, limit: number, ca?: Buffer): Promise<WebSocket> {
  return new Promise((resolve, reject) => {
    const key = randomBytes(16).toString("base64");
    const options: https.RequestOptions = {
      host: url.hostname.replace(/^\[|\]$/g, ""),
      port: url.port || (url.protocol === "wss:" ? 443 : 80),
      path: "/",
      headers: {
        Connection: "Upgrade",
        Upgrade: "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Protocol": subprotocol,
        Authorization: `Bearer ${token}`,
      },
      ...(ca ? { ca } : {}),
    };
    const request = url.protocol === "wss:" ? https.request(options) : http.request(options);
    request.once("error", reject);
    request.once("response", (response) => {
      const text: Buffer[] = [];
      response.on("data", (chunk: Buffer) => text.push(chunk));
      response.on("end", () => reject(new Refused(response.statusCode ?? 0, Buffer.concat(text).toString().trim())));
    });
    request.once("upgrade", (response, socket, rest) => {
      const accept = createHash("sha1").update(key + GUID).digest("base64");
      const { "sec-websocket-accept": accepted, "sec-websocket-protocol": chosen } = response.headers;
      if (accepted !== accept || chosen !== subprotocol) {
        socket.destroy();
        reject(new Error(`no server that speaks ${subprotocol}`));
      } else resolve(new WebSocket(socket, rest, limit));
    });
    request.end();
  });
}

export class WebSocket {
  /** When something was heard last, in milliseconds. */
  lastHeard = Date.now();
  private received: Buffer;
  private fragments: Buffer[] | undefined;
  private listener: Listener | undefined;
  private closing: [number, string] | undefined;
  private over = false;

  constructor(private readonly socket: Duplex, rest: Buffer, private readonly limit: number) {
    this.received = rest;
  }

  /** Nothing is lost that came before: it is handed over now. */
  listen(listener: Listener): void {
    this.listener = listener;
    this.socket.on("data", (chunk: Buffer) => {
      this.lastHeard = Date.now();
      this.received = this.received.length ? Buffer.concat([this.received, chunk]) : chunk;
      this.read();
    });
    this.socket.on("error", () => this.end(1006, "the connection broke off"));
    this.socket.on("close", () => this.end(1006, "the connection broke off"));
    this.read();
  }

  send(data: Buffer): void {
    if (!this.closing) this.frame(BINARY, data);
  }

  ping(): void {
    if (!this.closing) this.frame(PING, Buffer.alloc(0));
  }

  /** Begins the closing handshake; a peer that does not end it has two seconds. */
  close(code: number, reason: string): void {
    if (this.closing) return;
    const text = Buffer.from(reason, "utf8").subarray(0, 123);
    this.frame(CLOSE, Buffer.concat([Buffer.from([code >> 8, code & 0xff]), text]));
    this.closing = [code, reason];
    setTimeout(() => this.socket.destroy(), 2000).unref();
  }

  abort(): void {
    this.socket.destroy();
  }

  private end(code: number, reason: string): void {
    if (this.over) return;
    this.over = true;
    const [shownCode, shownReason] = this.closing ?? [code, reason];
    this.listener?.onClosed(shownCode, shownReason);
  }

  private frame(opcode: number, payload: Buffer): void {
    const length = payload.length;
    const size = length < 126 ? 2 : length < 0x10000 ? 4 : 10;
    const made = Buffer.alloc(size + 4 + length);
    made[0] = 0x80 | opcode;
    made[1] = 0x80 | (size === 2 ? length : size === 4 ? 126 : 127);
    if (size === 4) made.writeUInt16BE(length, 2);
    if (size === 10) made.writeBigUInt64BE(BigInt(length), 2);
    const mask = randomBytes(4);
    mask.copy(made, size);
    for (let at = 0; at < length; at++) made[size + 4 + at] = payload[at]! ^ mask[at & 3]!;
    this.socket.write(made);
  }

  private read(): void {
    while (!this.over) {
      const data = this.received;
      if (data.length < 2) return;
      const short = data[1]! & 0x7f;
      const size = short === 126 ? 4 : short === 127 ? 10 : 2;
      if (data.length < size) return;
      const length = size === 2 ? short : size === 4 ? data.readUInt16BE(2) : Number(data.readBigUInt64BE(2));
      if (data[0]! & 0x70 || data[1]! & 0x80) return this.close(1002, "bits that must not be set");
      const held = this.fragments?.reduce((sum, part) => sum + part.length, 0) ?? 0;
      if (held + length > this.limit) return this.close(1009, "a message too long");
      if (data.length < size + length) return;
      this.received = data.subarray(size + length);
      this.handle(data[0]! & 0x0f, (data[0]! & 0x80) !== 0, data.subarray(size, size + length));
    }
  }

  private handle(opcode: number, final: boolean, payload: Buffer): void {
    if (opcode === PING) this.closing || this.frame(PONG, payload);
    else if (opcode === PONG) return;
    else if (opcode === CLOSE) {
      const code = payload.length >= 2 ? payload.readUInt16BE(0) : 1005;
      const reason = payload.subarray(2).toString("utf8");
      if (!this.closing) {
        this.frame(CLOSE, payload.subarray(0, 2));
        this.closing = [code, reason];
      }
      this.socket.end();
      this.end(code, reason);
    } else if (opcode === TEXT) this.close(1003, "a text message");
    else if (opcode === (this.fragments ? CONTINUATION : BINARY)) {
      const parts = [...(this.fragments ?? []), payload];
      this.fragments = final ? undefined : parts;
      if (final && !this.closing) this.listener?.onMessage(parts.length === 1 ? payload : Buffer.concat(parts));
    } else this.close(1002, `an opcode out of place: ${opcode}`);
  }
}
