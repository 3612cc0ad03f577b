"""The client of a copy, over a socket to the worker that serves its session: the other side of replica/ (sides.Far).

Each request passes the gate, the limits and the audit like any other. What the client says is asked by its own name, component by
component of what was listed: a link that it puts in a directory's place leads nowhere.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Any, Final

from fuse_gated import operations as op
from fuse_gated.attached import RENAME_NOREPLACE, Attached
from fuse_gated.attached_file import BLOCK, AttachedFile
from fuse_gated.edge.asking import Waiting
from fuse_gated.paths import join, split
from fuse_gated.replica import names
from fuse_gated.replica.sides import Away, Changed, Refused
from fuse_gated.replica.version import DIRECTORY, FILE, LINK, Version, of_attributes

_RENAME_EXCHANGE: Final = 2  # renameat2(2)
_READ: Final = 4  # access(2)
_GONE: Final = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ELOOP, errno.ESTALE, errno.EBADF,
})  # fmt: skip
_AWAY: Final = frozenset({errno.ENOTCONN, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR})
_AWAY_OR_BROKEN: Final = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY})
"""What a client says that cannot do anything for now, and of one file for good."""
_NOT_EXCHANGED: Final = frozenset({
    errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM,
})  # fmt: skip
_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOLCK, *_AWAY_OR_BROKEN})
_MOST_REMOVABLE: Final = 10_000
_PATIENCE: Final = 30.0
"""Seconds in which a request that is refused for now is made again: EAGAIN, where the policy's limits refuse what is too much."""
_LONGEST_PAUSE: Final = 0.5
_MOST_ERRORS: Final = 3
"""Errors of one path, one after the other, from which on it is the file's own, and not the connection's."""


class PatientAttached(Attached):
    """Asks again what is refused for now: whoever looks at a whole export would otherwise never come to the end of it."""

    def finish(self, waiting: Waiting, path: bytes) -> Any:
        until, pause = time.monotonic() + _PATIENCE, 0.05
        while True:
            try:
                return super().finish(waiting, path)
            except OSError as error:
                if error.errno != errno.EAGAIN or time.monotonic() >= until:
                    raise
            # Once it is closed, nothing can be started: this does not outlive the session.
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            waiting = self.start(waiting.request, path)


class LocalClient:
    """`attached` is the session. After `join` it is another socket to the same one."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self._removable: set[bytes] = set()
        """Names, without what is temporary in them, of which a temporary one may be removed."""
        self._broken: tuple[bytes, int] = (b"", 0)

    def join(self, attached: Attached) -> None:
        """Ask by this socket from now on."""
        self.attached.close()
        self.attached = attached
        self.forget_rules()

    def forget_rules(self) -> None:
        """The rules may be others."""
        self._removable.clear()

    def root(self) -> tuple[int, int]:
        """(device, inode) of the export's own directory. Raises Away and Refused."""
        with self._errors(b""):
            found: op.Attributes = self.attached.ask(op.Getattr(b""), b"")
            return found.device, found.inode

    def scan(self, most: int) -> tuple[dict[bytes, Version], set[bytes]]:
        """Everything that is there, and what is not to be known: of what lies beneath that, nothing is. Of more than `most`
        names, what comes later is not to be known either, and b'' says so. What is listed again and again counts each time: a
        client could go on for ever. Raises Away."""
        found: dict[bytes, Version] = {}
        unknown: set[bytes] = set()
        todo = [b""]
        listed = 0
        while todo:
            directory = todo.pop()
            try:
                for path, seen in self._listed(directory):
                    listed += 1
                    if listed > most:
                        return found, {b""}
                    if names.is_ours(path):
                        continue
                    if seen is None or len(path) > names.LONGEST:
                        unknown.add(path)
                        continue
                    if seen.kind == DIRECTORY and path not in found:
                        todo.append(path)
                    found[path] = seen
            except (Changed, Refused):
                unknown.add(directory)
        return found, unknown

    def may_read(self, path: bytes) -> bool:
        """Raises Away."""
        try:
            with self._errors(path):
                # What a worker was never asked about it takes for a directory, of which a rule may allow to list it.
                self.attached.ask(op.Lookup(*split(path)), path)
                self.attached.ask(op.Access(path, _READ), path)
        except Refused:
            return False
        except Changed:
            # Another look will tell.
            return True
        return True

    # sides.Far

    def look(self, path: bytes) -> Version | None:
        try:
            with self._errors(path):
                return self._version(path, self.attached.ask(op.Lookup(*split(path)), path))
        except Changed:
            return None

    def look_now(self, path: bytes) -> Version | None:
        seen = self.look(path)
        if seen is None or seen.kind != FILE:
            return seen
        # What is opened for writing is opened there, and its attributes are asked of the client by its descriptor.
        try:
            with self._errors(path), AttachedFile(self.attached, path, os.O_WRONLY) as file:
                return of_attributes(self.attached.ask(op.Getattr(b"", file.handle), path))
        except (Changed, Refused):
            return seen

    def read(self, path: bytes) -> tuple[Version, Iterator[bytes]]:
        with self._errors(path):
            file = AttachedFile(self.attached, path, os.O_RDONLY)
            try:
                found: op.Attributes = self.attached.ask(op.Getattr(b"", file.handle), path)
            except BaseException:
                file.close()
                raise
        return of_attributes(found), self._pieces(file, path)

    def make(self, path: bytes, version: Version) -> Version:
        with self._errors(path):
            if version.kind == DIRECTORY:
                self.attached.mkdir(path, 0o755)
            else:
                self.attached.symlink(version.target, path)
        return version

    def write(self, path: bytes, chunks: Iterator[bytes], version: Version) -> Version:
        with self._errors(path):
            with AttachedFile(self.attached, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, version.mode) as file:
                offset = 0
                for chunk in chunks:
                    offset += file.write_at(offset, memoryview(chunk))
                file.fsync()
            # A build looks at times. Where they may not be set, the contents count all the same.
            with contextlib.suppress(PermissionError):
                self.attached.ask(op.Setattr(path, mtime=version.mtime), path)
            return self._version(path, self.attached.ask(op.Lookup(*split(path)), path))

    def rename(self, path: bytes, new_path: bytes) -> None:
        with self._errors(path):
            self.attached.rename(path, new_path, RENAME_NOREPLACE)

    def exchange(self, path: bytes, other: bytes) -> bool:
        with self._errors(path):
            try:
                self.attached.rename(path, other, _RENAME_EXCHANGE)
            except OSError as error:
                if error.errno in _NOT_EXCHANGED:
                    return False
                raise
        return True

    def replace(self, path: bytes, new_path: bytes) -> None:
        with self._errors(path):
            self.attached.rename(path, new_path)

    def remove(self, path: bytes, version: Version) -> None:
        with self._errors(path):
            place = split(path)
            self.attached.ask(op.Rmdir(*place) if version.kind == DIRECTORY else op.Unlink(*place), path)

    def may_remove(self, path: bytes) -> None:
        # Rules are by names: of what may be removed under one nothing is known under another.
        directory, name = split(path)
        plain = join(directory, name.removeprefix(names.TEMPORARY).partition(b"-")[2])
        if plain in self._removable:
            return
        with self._errors(path), contextlib.suppress(FileNotFoundError):
            self.attached.ask(op.Unlink(*split(path)), path)
        if len(self._removable) >= _MOST_REMOVABLE:
            self._removable.clear()
        self._removable.add(plain)

    # Details.

    def _listed(self, directory: bytes) -> Iterator[tuple[bytes, Version | None]]:
        with self._errors(directory):
            for listed in self.attached.listing(directory):
                path = join(directory, listed.name)
                if names.is_ours(path):
                    yield path, None
                elif listed.attributes is None and listed.kind == stat.S_IFDIR:
                    # It may be no more than a way to something.
                    yield path, Version(DIRECTORY)
                elif listed.attributes is None:
                    yield path, None
                elif stat.S_ISLNK(listed.attributes.mode):
                    yield path, self._linked(path)
                else:
                    yield path, of_attributes(listed.attributes)

    def _linked(self, path: bytes) -> Version:
        try:
            return Version(LINK, target=self.attached.ask(op.Readlink(path), path))
        except OSError as error:
            if error.errno in _AWAY | _AWAY_OR_BROKEN:
                raise
            # Where it leads is not told, or is gone by now.
            return Version(LINK)

    def _version(self, path: bytes, found: op.Attributes) -> Version:
        if stat.S_ISLNK(found.mode):
            return self._linked(path)
        return of_attributes(found)

    def _pieces(self, file: AttachedFile, path: bytes) -> Iterator[bytes]:
        offset = 0
        with file:
            while True:
                with self._errors(path):
                    data = file.read_at(offset, BLOCK)
                if not data:
                    return
                yield data
                offset += len(data)

    @contextlib.contextmanager
    def _errors(self, path: bytes) -> Iterator[None]:
        """What the worker says, as replica/ knows it."""
        try:
            yield
        except OSError as error:
            number = error.errno
            if number in _GONE:
                raise Changed from None
            if number in _AWAY or (number in _AWAY_OR_BROKEN and not self._is_broken(path)):
                raise Away(str(error)) from None
            raise Refused(error.strerror or str(error), passing=number in _PASSING) from None

    def _is_broken(self, path: bytes) -> bool:
        """Whether it is this file that cannot be had, and not the client."""
        before, times = self._broken
        self._broken = (path, times + 1 if path == before else 1)
        return self._broken[1] > _MOST_ERRORS
