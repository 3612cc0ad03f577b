// The directory that is offered, and what the server has open in it. Each operation of docs/api/fuse-operations.md that is
// served is a method of its name; arguments come as the wire has them and are looked at here.
//
// A path is walked name by name, through a descriptor of each directory: no symbolic link is followed, and nothing outside the
// directory is reached.

import * as fs from "node:fs";
import type { Value } from "./msgpack.js";
import {
  Errno, EXCLUSIVE, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, O_RDONLY, O_WRONLY, S_IFDIR, S_IFLNK, S_IFMT,
  S_IFREG, TRUNCATE, WRITE, attributes, bytes, int, isInt, itself, offset, opening, place, seconds, split, written,
} from "./posix.js";

const MAX_DATA = 2 ** 20;
const MOST_HANDLES = 4096;
const LONGEST_PART = 1000;
const ROOM = 500_000;

interface Entry {
  name: Buffer;
  inode: bigint;
}

interface Open {
  fd: number;
  writable: boolean;
  directory: boolean;
  appending?: number;
  listing?: Entry[];
}

export class Tree {
  private readonly root: number;
  private readonly open_ = new Map<number, Open>();
  private last = 0;
  private readonly disarms = process.geteuid!() === 0;

  constructor(directory: string, private readonly readOnly: boolean) {
    this.root = fs.openSync(directory, O_PATH | O_DIRECTORY);
    process.umask(0);
  }

  /** Carries out one request. Raises Errno, WrongArguments, or what Node's fs raises. */
  carryOut(operation: string, args: Value[]): Value {
    const method = Tree.operations.get(operation);
    if (!method) throw new Errno("ENOSYS");
    if (this.readOnly && Tree.changes.has(operation)) throw new Errno("EROFS");
    return method.call(this, args) ?? null;
  }

  static readonly operations = new Map<string, (this: Tree, args: Value[]) => Value | void>([
    ["getattr", Tree.prototype.getattr],
    ["setattr", Tree.prototype.setattr],
    ["readlink", Tree.prototype.readlink],
    ["symlink", Tree.prototype.symlink],
    ["mkdir", Tree.prototype.mkdir],
    ["unlink", Tree.prototype.unlink],
    ["rmdir", Tree.prototype.rmdir],
    ["rename", Tree.prototype.rename],
    ["open", Tree.prototype.open],
    ["create", Tree.prototype.create],
    ["read", Tree.prototype.read],
    ["write", Tree.prototype.write],
    ["flush", Tree.prototype.flush],
    ["release", Tree.prototype.release],
    ["fsync", Tree.prototype.fsync],
    ["opendir", Tree.prototype.opendir],
    ["readdir", Tree.prototype.readdir],
    ["releasedir", Tree.prototype.release],
    ["fsyncdir", Tree.prototype.fsync],
    ["statfs", Tree.prototype.statfs],
    ["access", Tree.prototype.access],
  ]);
  private static readonly changes = new Set(["setattr", "symlink", "mkdir", "unlink", "rmdir", "rename", "create", "write"]);

  // Paths and handles.

  /** Calls `use` with the way to the last name, through a descriptor of its directory that is open meanwhile. */
  private at<T>(path: Buffer, use: (place: Buffer) => T): T {
    const names = split(path);
    let directory = this.root;
    try {
      for (const name of names.slice(0, -1)) {
        const deeper = fs.openSync(place(directory, name), O_PATH | O_DIRECTORY | O_NOFOLLOW);
        if (directory !== this.root) fs.closeSync(directory);
        directory = deeper;
      }
      return use(place(directory, names[names.length - 1]!));
    } finally {
      if (directory !== this.root) fs.closeSync(directory);
    }
  }

  /** Calls `use` with a descriptor of the very file: an O_PATH one, or the handle's own. */
  private with<T>(target: Value | undefined, use: (fd: number) => T): T {
    if (isInt(target)) return use(this.handle(target).fd);
    const path = bytes(target);
    if (path.length === 0) return use(this.root);
    const fd = this.at(path, (where) => fs.openSync(where, O_PATH | O_NOFOLLOW));
    try {
      return use(fd);
    } finally {
      fs.closeSync(fd);
    }
  }

  private handle(number: Value | undefined): Open {
    const found = this.open_.get(Number(int(number)));
    if (!found) throw new Errno("EBADF");
    return found;
  }

  private room(): void {
    if (this.open_.size >= MOST_HANDLES) throw new Errno("EMFILE");
  }

  private add(fd: number, writable: boolean, directory: boolean): Value {
    this.last += 1;
    this.open_.set(this.last, { fd, writable, directory });
    return [this.last, attributes(fs.fstatSync(fd, { bigint: true }))];
  }

  /** Root's writes keep setuid and setgid, so they are taken away first. */
  private disarm(fd: number): void {
    if (!this.disarms) return;
    const mode = fs.fstatSync(fd).mode;
    if ((mode & S_IFMT) === S_IFREG && mode & 0o6000) fs.chmodSync(itself(fd), mode & 0o1777);
  }

  // Operations.

  getattr([target]: Value[]): Value {
    return this.with(target, (fd) => attributes(fs.fstatSync(fd, { bigint: true })));
  }

  setattr([target, mode = null, uid = null, gid = null, size = null, atime = null, mtime = null]: Value[]): Value {
    if (uid !== null || gid !== null) throw new Errno("EPERM");
    return this.with(target, (fd) => {
      const before = fs.fstatSync(fd, { bigint: true });
      const kind = Number(before.mode) & S_IFMT;
      if (size !== null) {
        if (kind !== S_IFREG) throw new Errno(kind === S_IFDIR ? "EISDIR" : "EINVAL");
        this.disarm(fd);
        if (isInt(target)) fs.ftruncateSync(fd, offset(size));
        else fs.truncateSync(itself(fd), offset(size));
      }
      if (mode !== null) {
        if (kind === S_IFLNK) throw new Errno("EOPNOTSUPP");
        fs.chmodSync(itself(fd), Number(int(mode)) & 0o1777);
      }
      if (atime !== null || mtime !== null) {
        // Node sets times as seconds in a double, which is exact to about a microsecond.
        if (kind === S_IFLNK) throw new Errno("EOPNOTSUPP");
        fs.utimesSync(itself(fd), seconds(atime, before.atimeNs), seconds(mtime, before.mtimeNs));
      }
      return attributes(fs.fstatSync(fd, { bigint: true }));
    });
  }

  readlink([path]: Value[]): Value {
    return this.at(bytes(path), (where) => fs.readlinkSync(where, { encoding: "buffer" }));
  }

  symlink([path, target, owner = null]: Value[]): Value {
    if (owner !== null) throw new Errno("EPERM");
    return this.at(bytes(path), (where) => {
      fs.symlinkSync(bytes(target), where);
      return attributes(fs.lstatSync(where, { bigint: true }));
    });
  }

  mkdir([path, mode, owner = null]: Value[]): Value {
    if (owner !== null) throw new Errno("EPERM");
    return this.at(bytes(path), (where) => {
      fs.mkdirSync(where, Number(int(mode)) & 0o1777);
      return attributes(fs.lstatSync(where, { bigint: true }));
    });
  }

  unlink([path]: Value[]): void {
    this.at(bytes(path), (where) => fs.unlinkSync(where));
  }

  rmdir([path]: Value[]): void {
    this.at(bytes(path), (where) => fs.rmdirSync(where));
  }

  rename([path, newPath, noReplace = false, exchange = false]: Value[]): void {
    // Node has no renameat2(2), and what is not one step must not be imitated.
    if (noReplace || exchange) throw new Errno("EINVAL");
    this.at(bytes(path), (from) => this.at(bytes(newPath), (to) => fs.renameSync(from, to)));
  }

  open([target, flags]: Value[]): Value {
    const wanted = Number(int(flags));
    if (this.readOnly && wanted & (WRITE | TRUNCATE)) throw new Errno("EROFS");
    this.room();
    return this.with(target, (fd) => {
      const kind = fs.fstatSync(fd).mode & S_IFMT;
      if (kind !== S_IFREG) throw new Errno(kind === S_IFDIR ? "EISDIR" : kind === S_IFLNK ? "ELOOP" : "ENXIO");
      if (wanted & TRUNCATE) this.disarm(fd);
      return this.add(fs.openSync(itself(fd), opening(wanted)), (wanted & WRITE) !== 0, false);
    });
  }

  create([path, flags, mode, owner = null]: Value[]): Value {
    if (owner !== null) throw new Errno("EPERM");
    this.room();
    const wanted = Number(int(flags));
    const made = this.at(bytes(path), (where) => {
      try {
        return fs.openSync(where, opening(wanted & ~TRUNCATE) | O_CREAT | O_EXCL | O_NOFOLLOW, Number(int(mode)) & 0o1777);
      } catch (error) {
        if (wanted & EXCLUSIVE || (error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
        return undefined;
      }
    });
    return made === undefined ? this.open([path!, flags!]) : this.add(made, (wanted & WRITE) !== 0, false);
  }

  read([handle, from, size]: Value[]): Value {
    const { fd } = this.handle(handle);
    const length = Number(int(size));
    if (length < 0 || length > MAX_DATA) throw new Errno("EINVAL");
    const data = Buffer.alloc(length);
    let done = 0;
    // Fewer bytes mean the file's end, so a short read is gone on with.
    for (let more = 1; done < length && more > 0; done += more) {
      more = fs.readSync(fd, data, done, length - done, offset(from) + done);
    }
    return data.subarray(0, done);
  }

  write([handle, to, data, append = false, _clear = false, most = null]: Value[]): Value {
    const file = this.handle(handle);
    const content = bytes(data);
    if (!file.writable) throw new Errno("EBADF");
    if (content.length > MAX_DATA) throw new Errno("EINVAL");
    this.disarm(file.fd);
    if (!append) return written(content, (rest, done) => fs.writeSync(file.fd, rest, 0, rest.length, offset(to) + done));
    if (most !== null && fs.fstatSync(file.fd).size + content.length > Number(int(most))) throw new Errno("EFBIG");
    file.appending ??= fs.openSync(itself(file.fd), O_WRONLY | O_APPEND);
    const end = file.appending;
    return written(content, (rest) => fs.writeSync(end, rest));
  }

  flush([handle]: Value[]): void {
    this.handle(handle);
  }

  release([handle]: Value[]): void {
    const file = this.handle(handle);
    this.open_.delete(Number(int(handle)));
    fs.closeSync(file.fd);
    if (file.appending !== undefined) fs.closeSync(file.appending);
  }

  fsync([handle, dataOnly = false]: Value[]): void {
    const { fd } = this.handle(handle);
    if (dataOnly) fs.fdatasyncSync(fd);
    else fs.fsyncSync(fd);
  }

  opendir([path]: Value[]): Value {
    this.room();
    return this.with(path, (fd) => {
      if ((fs.fstatSync(fd).mode & S_IFMT) !== S_IFDIR) throw new Errno("ENOTDIR");
      return this.add(fs.openSync(itself(fd), O_RDONLY | O_DIRECTORY), false, true);
    });
  }

  readdir([handle, cookie, count, withAttributes]: Value[]): Value {
    const directory = this.handle(handle);
    const first = offset(cookie);
    if (!directory.directory) throw new Errno("EBADF");
    if (Number(int(count)) < 1) throw new Errno("EINVAL");
    if (first === 0) {
      const names = fs.readdirSync(itself(directory.fd), { encoding: "buffer" });
      directory.listing = names.map((name) => ({ name, inode: 0n }));
    }
    const listing = directory.listing ?? [];
    const told: Value[] = [];
    let room = ROOM;
    for (const entry of listing.slice(first, first + Math.min(Number(int(count)), LONGEST_PART))) {
      room -= entry.name.length + 150;
      if (room < 0 && told.length) break;
      const found = fs.lstatSync(place(directory.fd, entry.name), { bigint: true, throwIfNoEntry: false });
      // A name that has gone keeps its place: cookies are positions.
      entry.inode = found?.ino ?? entry.inode;
      told.push([entry.name, entry.inode, found ? Number(found.mode) & S_IFMT : 0, withAttributes && found ? attributes(found) : null]);
    }
    return [told, first + told.length >= listing.length];
  }

  statfs(): Value {
    const found = fs.statfsSync(itself(this.root), { bigint: true });
    // Node tells no f_namemax and no f_frsize; Linux's file systems have 255, and blocks of bsize.
    return [found.blocks, found.bfree, found.bavail, found.files, found.ffree, found.bsize, 255, found.bsize];
  }

  access([target, mask]: Value[]): void {
    const wanted = Number(int(mask));
    if (this.readOnly && wanted & 2) throw new Errno("EROFS");
    this.with(target, (fd) => fs.accessSync(itself(fd), wanted & 7));
  }
}

