// MessagePack as the protocol uses it: integers, floats, bool, nil, str, bin, arrays and maps with str keys.

export type Value = number | bigint | boolean | null | string | Buffer | Float | Value[] | { [key: string]: Value };

/** JavaScript has one kind of number; MessagePack has two, and the protocol tells them apart. */
export class Float {
  constructor(readonly value: number) {}
}

export class Malformed extends Error {}

/** Integers beyond 2^53 are bigints: times in nanoseconds, inode numbers, lock owners. */
export function encode(value: Value): Buffer {
  const parts: Buffer[] = [];
  write(value, parts);
  return Buffer.concat(parts);
}

export function decode(data: Buffer): Value {
  const reader = new Reader(data);
  const value = reader.value(0);
  if (!reader.atEnd) throw new Malformed("bytes behind the message");
  return value;
}

function head(short: [limit: number, first: number], wide: [number, number, number], length: number): Buffer {
  if (length < short[0]) return Buffer.from([short[1] | length]);
  if (length < 0x100 && wide[0]) return Buffer.from([wide[0], length]);
  const made = Buffer.alloc(length < 0x10000 ? 3 : 5);
  if (length < 0x10000) {
    made[0] = wide[1];
    made.writeUInt16BE(length, 1);
  } else {
    made[0] = wide[2];
    made.writeUInt32BE(length, 1);
  }
  return made;
}

function write(value: Value, parts: Buffer[]): void {
  if (value === null) parts.push(Buffer.from([0xc0]));
  else if (typeof value === "boolean") parts.push(Buffer.from([value ? 0xc3 : 0xc2]));
  else if (typeof value === "number" || typeof value === "bigint") parts.push(integer(BigInt(value)));
  else if (typeof value === "string") {
    const bytes = Buffer.from(value, "utf8");
    parts.push(head([32, 0xa0], [0xd9, 0xda, 0xdb], bytes.length), bytes);
  } else if (Buffer.isBuffer(value)) parts.push(head([0, 0], [0xc4, 0xc5, 0xc6], value.length), value);
  else if (Array.isArray(value)) {
    parts.push(head([16, 0x90], [0, 0xdc, 0xdd], value.length));
    for (const item of value) write(item, parts);
  } else if (value instanceof Float) {
    const made = Buffer.alloc(9, 0xcb);
    made.writeDoubleBE(value.value, 1);
    parts.push(made);
  } else {
    const entries = Object.entries(value);
    parts.push(head([16, 0x80], [0, 0xde, 0xdf], entries.length));
    for (const [key, item] of entries) {
      write(key, parts);
      write(item, parts);
    }
  }
}

function integer(value: bigint): Buffer {
  if (value >= -32n && value < 128n) return Buffer.from([Number(BigInt.asUintN(8, value))]);
  const made = Buffer.alloc(9, value < 0n ? 0xd3 : 0xcf);
  if (value < 0n) made.writeBigInt64BE(value, 1);
  else made.writeBigUInt64BE(value, 1);
  return made;
}

const DEEPEST = 16;

class Reader {
  private at = 0;

  constructor(private readonly data: Buffer) {}

  get atEnd(): boolean {
    return this.at === this.data.length;
  }

  value(depth: number): Value {
    if (depth > DEEPEST) throw new Malformed("nested too deeply");
    const first = this.take(1).readUInt8();
    if (first < 0x80) return first;
    if (first >= 0xe0) return first - 0x100;
    if (first < 0x90) return this.map(first & 0x0f, depth);
    if (first < 0xa0) return this.array(first & 0x0f, depth);
    if (first < 0xc0) return this.text(first & 0x1f);
    switch (first) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.take(this.length(1));
      case 0xc5: return this.take(this.length(2));
      case 0xc6: return this.take(this.length(4));
      case 0xca: return new Float(this.take(4).readFloatBE());
      case 0xcb: return new Float(this.take(8).readDoubleBE());
      case 0xcc: return this.length(1);
      case 0xcd: return this.length(2);
      case 0xce: return this.length(4);
      case 0xcf: return narrowed(this.take(8).readBigUInt64BE());
      case 0xd0: return this.take(1).readInt8();
      case 0xd1: return this.take(2).readInt16BE();
      case 0xd2: return this.take(4).readInt32BE();
      case 0xd3: return narrowed(this.take(8).readBigInt64BE());
      case 0xd9: return this.text(this.length(1));
      case 0xda: return this.text(this.length(2));
      case 0xdb: return this.text(this.length(4));
      case 0xdc: return this.array(this.length(2), depth);
      case 0xdd: return this.array(this.length(4), depth);
      case 0xde: return this.map(this.length(2), depth);
      case 0xdf: return this.map(this.length(4), depth);
    }
    throw new Malformed(`no type of ours: ${first}`);
  }

  private take(length: number): Buffer {
    const end = this.at + length;
    if (end > this.data.length) throw new Malformed("cut off");
    const taken = this.data.subarray(this.at, end);
    this.at = end;
    return taken;
  }

  private length(width: number): number {
    return this.take(width).readUIntBE(0, width);
  }

  private text(length: number): string {
    const bytes = this.take(length);
    const text = bytes.toString("utf8");
    if (!Buffer.from(text, "utf8").equals(bytes)) throw new Malformed("a str that is not UTF-8");
    return text;
  }

  private array(length: number, depth: number): Value[] {
    const items: Value[] = [];
    // One by one: a length that was made up costs nothing.
    for (let number = 0; number < length; number++) items.push(this.value(depth + 1));
    return items;
  }

  private map(length: number, depth: number): { [key: string]: Value } {
    const made: { [key: string]: Value } = Object.create(null);
    for (let number = 0; number < length; number++) {
      const key = this.value(depth + 1);
      if (typeof key !== "string") throw new Malformed("a key that is no str");
      made[key] = this.value(depth + 1);
    }
    return made;
  }
}

function narrowed(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
