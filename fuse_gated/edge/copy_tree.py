"""The copy of an export on this machine's disk: one side of replica/ (sides.Near).

Programs work in it at any moment, and what they do is theirs: a name is resolved beneath the root's descriptor, without following
a link, and nothing is replaced or removed before it was looked at where nobody can reach it any more. For that it is exchanged
with what comes, or renamed into a directory beside the copy (renameat2(2)). A file that a program has open for writing is left
alone: the kernel tells of one by refusing a lease on it (fcntl(2), F_SETLEASE), for files of our own user. One of another user's
that went is therefore kept beside for a while: if somebody writes to it still, it comes back under a name of its own.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from fuse_gated.edge import syscalls
from fuse_gated.paths import NAME_MAX, components, is_safe_name, join, split
from fuse_gated.replica import names
from fuse_gated.replica.sides import Busy, Changed, Refused
from fuse_gated.replica.version import DIRECTORY, FILE, Base, Version, same_but_renamed, version

PIECE: Final = 2**20
"""Bytes that are read at once."""
BESIDE: Final = "tmp"
"""The directory of what is on its way."""
KEPT_FOR: Final = 600.0
"""Seconds for which a file that went is kept, if nobody can know whether a program has it open."""

_GONE: Final = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.EXDEV, errno.ESTALE,
})  # fmt: skip
_TRIES: Final = 100
_KEPT: Final = "kept"
_CLOCK: Final = 5  # CLOCK_REALTIME_COARSE (linux/time.h), by which files have their times.
_TICK: Final = 10_000_000
"""Nanoseconds: its coarsest step (CONFIG_HZ=100)."""
_MODE_DIRECTORY: Final = 0o770


class CopyTree:
    """`root` is a descriptor of the copy's root, `beside` of a directory on the same filesystem that is ours alone and has BESIDE
    in it. Neither is closed here. After `scan`, `closed` has the directories that may not be listed, and why. `before_reading` is
    called with the path of each file that is to be read. `is_written` knows, of some, whether a program is at work on them:
    asked where the kernel does not tell."""

    def __init__(self, root: int, beside: int) -> None:
        self.root = root
        self.closed: dict[bytes, str] = {}
        self.before_reading: Callable[[bytes], None] = lambda _path: None
        self.is_written: Callable[[bytes], bool] = lambda _path: False
        self._kept: dict[str, tuple[bytes, Version, float]] = {}
        """What went and may be open: where it was, what it is, and when it may go."""
        self._beside = open_within(beside, BESIDE.encode(), os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self._beside)

    # What is there.

    def scan(self) -> list[bytes]:
        """All names in it, but what lies in directories that may not be listed, or whose paths are too long."""
        found: list[bytes] = []
        self.closed = {}
        todo = [b""]
        while todo:
            directory = todo.pop()
            try:
                opened = open_within(self.root, directory, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if error.errno not in _GONE:
                    self.closed[directory] = f"it cannot be listed here: {error.strerror}"
                continue
            with contextlib.suppress(OSError):
                try:
                    with os.scandir(opened) as entries:
                        for entry in entries:
                            path = join(directory, os.fsencode(entry.name))
                            found.append(path)
                            if entry.is_dir(follow_symlinks=False) and len(path) <= names.LONGEST:
                                todo.append(path)
                finally:
                    os.close(opened)
        return found

    def look(self, path: bytes) -> Version | None:
        try:
            with self._parent(path) as (directory, name):
                return _version(directory, name)
        except Changed:
            return None

    def read(self, path: bytes) -> tuple[Version, Iterator[bytes]]:
        self.before_reading(path)
        with _errors():
            fd = open_within(self.root, path, os.O_RDONLY | os.O_NONBLOCK)
        # The clock first: whoever writes after this look leaves a later time.
        now = time.clock_gettime_ns(_CLOCK)
        found = _of(os.fstat(fd))
        if found.kind != FILE or _is_being_written(fd):
            os.close(fd)
            raise Changed if found.kind != FILE else Busy
        if now <= found.ctime <= now + _TICK:
            # Whoever writes in the same tick of the clock leaves this time.
            os.close(fd)
            raise Changed
        return found, _Pieces(fd)

    # What comes.

    def make(self, path: bytes, version: Version) -> Version:
        with self._parent(path) as (directory, name):
            if version.kind == DIRECTORY:
                os.mkdir(name, _MODE_DIRECTORY, dir_fd=directory)
            else:
                os.symlink(version.target, name, dir_fd=directory)
        return version

    def receive(self, chunks: Iterator[bytes], version: Version) -> str:
        name = secrets.token_hex(8)
        size = 0
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660, dir_fd=self._beside)
            try:
                for chunk in chunks:
                    size += len(chunk)
                    if size > version.size:
                        break
                    _write(fd, chunk)
                os.fchmod(fd, 0o770 if version.executable else 0o660)
                os.utime(fd, ns=(version.mtime, version.mtime))
            finally:
                os.close(fd)
        except OSError as error:
            self.discard(name)
            raise Refused(f"it cannot be written here: {error.strerror}", passing=True) from None
        except BaseException:
            self.discard(name)
            raise
        if size != version.size:
            self.discard(name)
            raise Changed
        return name

    def discard(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._beside)

    def install(self, name: str, path: bytes, expected: Version | None) -> Version:
        ours = _there(_version(self._beside, name.encode()))
        with self._parent(path) as (directory, leaf):
            if expected is None:
                self._rename(name, directory, leaf, syscalls.RENAME_NOREPLACE)
            else:
                self._check(directory, path, expected)
                self._exchange(name, directory, leaf, path, ours, expected)
            found = _version(directory, leaf)
        # What a program has made of it since is a change.
        return found if found is not None and same_but_renamed(found, ours) else ours

    def _exchange(self, name: str, directory: int, leaf: bytes, path: bytes, ours: Version, expected: Version) -> None:
        # By its name whoever comes after us knows whether they were exchanged.
        marked = f"{ours.inode}-{name}"
        os.rename(name, marked, src_dir_fd=self._beside, dst_dir_fd=self._beside)
        try:
            self._rename(marked, directory, leaf, syscalls.RENAME_EXCHANGE)
        except OSError:
            self.discard(marked)
            raise
        why = self._why_kept(marked, expected)
        if why is not None:
            with contextlib.suppress(OSError):
                self._rename(marked, directory, leaf, syscalls.RENAME_EXCHANGE)
            if same_but_renamed(_there(_version(self._beside, marked.encode())), ours):
                self.discard(marked)
            else:
                # The name has gone meanwhile, or a program has written to what was there for a moment.
                self._give_back(marked, path)
            raise why
        self._let_go(marked, path, expected)

    # What goes.

    def remove(self, path: bytes, expected: Version) -> None:
        with self._parent(path) as (directory, leaf):
            if expected.kind == DIRECTORY:
                os.rmdir(leaf, dir_fd=directory)
                return
            self._check(directory, path, expected)
            name = f"0-{secrets.token_hex(8)}"
            syscalls.renameat2(directory, leaf, self._beside, name.encode(), syscalls.RENAME_NOREPLACE)
            why = self._why_kept(name, expected)
            if why is not None:
                self._give_back(name, path)
                raise why
            self._let_go(name, path, expected)

    def _let_go(self, name: str, path: bytes, expected: Version) -> None:
        """What was put aside goes, or is kept for a while if a program may have it open without our knowing."""
        if expected.kind != FILE or _is_open(self._beside, name.encode()) is False:
            self.discard(name)
            return
        kept = f"{_KEPT}-{secrets.token_hex(8)}"
        os.rename(name, kept, src_dir_fd=self._beside, dst_dir_fd=self._beside)
        self._keep(kept, path)

    def _keep(self, name: str, path: bytes) -> None:
        found = _version(self._beside, name.encode())
        if found is not None:
            self._kept[name] = (path, found, time.monotonic() + KEPT_FOR)

    def give_back(self) -> bool:
        """What went and was written to since comes back under a name of its own; what nobody wrote to for long goes at last.
        Whether anything came back."""
        back = False
        for name, (path, was, until) in list(self._kept.items()):
            found = _version(self._beside, name.encode())
            if found is None:
                del self._kept[name]
            elif not same_but_renamed(found, was):
                del self._kept[name]
                self._give_back(name, path, first=1)
                back = True
            elif time.monotonic() >= until:
                del self._kept[name]
                self.discard(name)
        return back

    def is_open(self, path: bytes) -> bool:
        """Whether a program has that file open for writing, as far as anybody knows. Raises Refused."""
        with contextlib.suppress(Changed), self._parent(path) as (directory, name):
            return self._is_open(directory, name, path)
        return False

    def end(self) -> None:
        """Nobody sees to what is kept from now on."""
        self.give_back()
        for name in self._kept:
            self.discard(name)
        self._kept.clear()

    def move(self, path: bytes, new_path: bytes) -> None:
        with self._parent(path) as (directory, name), self._parent(new_path) as (new_directory, new_name):
            syscalls.renameat2(directory, name, new_directory, new_name, syscalls.RENAME_NOREPLACE)

    def recover(self, bases: Mapping[bytes, Base]) -> None:
        """What a process that was killed has left beside: what came from the client goes, it comes again; what was a program's,
        and is not what the client has, goes back."""
        by_inode = {(base.local.device, base.local.inode): (path, base.local) for path, base in bases.items()}
        for name in os.listdir(self._beside):
            found = _version(self._beside, name.encode())
            if found is None:
                continue
            if name.startswith(_KEPT):
                # Where it was nobody knows any more.
                self._keep(name, b"recovered")
                continue
            path, local = by_inode.get((found.device, found.inode), (b"recovered", None))
            inode = name.rpartition("-")[0]
            is_programs = inode and inode != str(found.inode)
            if is_programs and (local is None or not same_but_renamed(found, local)):
                self._give_back(name, path)
            else:
                self.discard(name)

    def tell(self, text: bytes) -> None:
        """Have the file that tells say this; without a text there is none. Raises OSError."""
        if not text:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(names.TOLD, dir_fd=self.root)
            return
        name = secrets.token_hex(8)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._beside)
        try:
            try:
                _write(fd, text)
                os.fchmod(fd, 0o644)
            finally:
                os.close(fd)
            os.rename(name, names.TOLD, src_dir_fd=self._beside, dst_dir_fd=self.root)
        except OSError:
            self.discard(name)
            raise

    # Details.

    @contextlib.contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        parent, name = split(path)
        with _errors():
            _check_name(name)
            directory = open_within(self.root, parent, os.O_PATH | os.O_DIRECTORY)
            try:
                yield directory, name
            finally:
                os.close(directory)

    def _check(self, directory: int, path: bytes, expected: Version) -> None:
        """Raises Changed and Busy where it is not to be touched."""
        name = split(path)[1]
        if _version(directory, name) != expected:
            raise Changed
        if expected.kind == FILE and self._is_open(directory, name, path):
            raise Busy

    def _is_open(self, directory: int, name: bytes, path: bytes) -> bool:
        is_open = _is_open(directory, name)
        return self.is_written(path) if is_open is None else is_open

    def _why_kept(self, name: str, expected: Version) -> Exception | None:
        """Why what was put aside is not to go: nobody finds it any more, but a program may have had it open before."""
        if not same_but_renamed(_there(_version(self._beside, name.encode())), expected):
            return Changed()
        return Busy() if expected.kind == FILE and _is_open(self._beside, name.encode()) else None

    def _give_back(self, name: str, path: bytes, *, first: int = 0) -> None:
        """To its place, or to a name beside it. Where that cannot be, it stays aside, and is seen to by whoever comes after."""
        for number in range(first, _TRIES):
            place = names.conflict(path, "local", number) if number else path
            with contextlib.suppress(OSError, Changed, Refused), self._parent(place) as (directory, leaf):
                self._rename(name, directory, leaf, syscalls.RENAME_NOREPLACE)
                return

    def _rename(self, name: str, directory: int, leaf: bytes, flags: int) -> None:
        syscalls.renameat2(self._beside, name.encode(), directory, leaf, flags)


def open_within(root: int, path: bytes, flags: int) -> int:
    """A descriptor of what `path` is beneath the descriptor `root`, reached without any link: one component after the other,
    because the daemon's unit has no openat2(2) (RestrictSUIDSGID=). Raises OSError."""
    *above, last = components(path) or [b"."]
    fd = root
    try:
        for name in above:
            _check_name(name)
            deeper = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            if fd != root:
                os.close(fd)
            fd = deeper
        if path:
            _check_name(last)
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    finally:
        if fd != root:
            os.close(fd)


def _check_name(name: bytes) -> None:
    if not is_safe_name(name):
        number = errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT
        raise OSError(number, os.strerror(number))


class _Pieces:
    """What is read from a descriptor, which is closed with the last that knows of it: nobody need read on to the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = os.read(self._fd, PIECE)
        if not data:
            raise StopIteration
        return data

    def __del__(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What the kernel says, as replica/ knows it."""
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise Changed from None
        raise Refused(f"not to be had here: {error.strerror}") from None


def _version(directory: int, name: bytes) -> Version | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    return _of(status, target)


def _of(status: os.stat_result, target: bytes = b"") -> Version:
    return version(
        status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
        device=status.st_dev, inode=status.st_ino, target=target,
    )  # fmt: skip


def _there(found: Version | None) -> Version:
    if found is None:
        raise Changed
    return found


def _is_open(directory: int, name: bytes) -> bool | None:
    """Whether a program has the file open for writing; None where the kernel does not tell us."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return _is_being_written(fd)
    finally:
        os.close(fd)


def _is_being_written(fd: int) -> bool | None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        # Anything else: the file is not our user's, or its filesystem has no leases.
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

