// Linux's numbers, names beneath a directory, and the wire's values: what tree.ts stands on.
//
// Node has no openat(2). `/proc/self/fd/N/NAME` is the same: the directory that descriptor N stands for, and one name in it.

import * as fs from "node:fs";
import type { Value } from "./msgpack.js";

export const O_PATH = 0o10000000; // open(2); not among Node's constants
export const { O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_WRONLY } = fs.constants;
const { O_DSYNC, O_NONBLOCK, O_RDWR, O_SYNC, O_TRUNC } = fs.constants;
export const S_IFMT = 0o170000, S_IFREG = 0o100000, S_IFDIR = 0o040000, S_IFLNK = 0o120000;
// The wire's open flags.
export const READ = 1, WRITE = 2, TRUNCATE = 4, EXCLUSIVE = 8, SYNC = 16, DSYNC = 32;

/** The request is answered with this errno's name. */
export class Errno extends Error {
  constructor(readonly code: string) {
    super(code);
  }
}

/** The arguments are none of this operation: the server's fault. */
export class WrongArguments extends Error {}

export function split(path: Buffer): Buffer[] {
  const names: Buffer[] = [];
  for (let start = 0, end = 0; start <= path.length; start = end + 1) {
    end = path.indexOf(0x2f, start);
    if (end < 0) end = path.length;
    const name = path.subarray(start, end);
    const text = name.toString("latin1");
    if (text === "" || text === "." || text === ".." || text.includes("\0")) throw new Errno("EINVAL");
    if (name.length > 255) throw new Errno("ENAMETOOLONG");
    names.push(name);
  }
  return names;
}

export function place(directory: number, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${directory}/`), name]);
}

/** The way to the file that a descriptor stands for, also where it is a symbolic link or an O_PATH one. */
export function itself(fd: number): string {
  return `/proc/self/fd/${fd}`;
}

export function attributes(found: fs.BigIntStats): Value {
  const major = (found.rdev >> 8n) & 0xfffn;
  const minor = (found.rdev & 0xffn) | ((found.rdev >> 12n) & 0xfff00n);
  const rdev = (minor & 0xffn) | (major << 8n) | ((minor & ~0xffn) << 12n);
  return [
    found.dev, found.ino, found.mode, found.nlink, found.uid, found.gid, rdev, found.size, found.blocks, found.blksize,
    found.atimeNs, found.mtimeNs, found.ctimeNs,
  ];
}

export function opening(flags: number): number {
  const way = flags & READ ? (flags & WRITE ? O_RDWR : O_RDONLY) : O_WRONLY;
  if (!(flags & (READ | WRITE))) throw new Errno("EINVAL");
  return way | O_NONBLOCK | (flags & TRUNCATE ? O_TRUNC : 0) | (flags & SYNC ? O_SYNC : 0) | (flags & DSYNC ? O_DSYNC : 0);
}

/** All of it, unless an error comes after a part: that meets the next write. */
export function written(content: Buffer, write: (rest: Buffer, done: number) => number): number {
  let done = 0;
  while (done < content.length) {
    try {
      done += write(content.subarray(done), done);
    } catch (error) {
      if (done) break;
      throw error;
    }
  }
  return done;
}

export function seconds(time: Value, before: bigint): number {
  if (time === null) return Number(before) / 1e9;
  return Number(int(time)) === -1 ? Date.now() / 1000 : Number(int(time)) / 1e9;
}

export function isInt(value: Value | undefined): value is number | bigint {
  return typeof value === "bigint" || typeof value === "number";
}

export function int(value: Value | undefined): number | bigint {
  if (!isInt(value)) throw new WrongArguments("no int where one belongs");
  return value;
}

export function offset(value: Value | undefined): number {
  const number = Number(int(value));
  if (!Number.isSafeInteger(number) || number < 0) throw new Errno("EINVAL");
  return number;
}

export function bytes(value: Value | undefined): Buffer {
  if (!Buffer.isBuffer(value)) throw new WrongArguments("no bytes where they belong");
  return value;
}
