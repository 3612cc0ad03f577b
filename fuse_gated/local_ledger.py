"""The ledger of a copy (replica/ledger.py) as a file beside it."""

import contextlib
import os
from typing import Final

from fuse_gated.replica.ledger import Book, Entry, Header, Ledger, encode, read
from fuse_gated.replica.sides import Away

_NAME: Final = "ledger"
_NEW: Final = "ledger.new"
_MARK: Final = "new"
_BOOT: Final = "/proc/sys/kernel/random/boot_id"
_LEAST: Final = 2**20
"""Bytes of a ledger from which on it is written anew when half of it holds no more."""


class Unwritable(Away):
    """The ledger cannot be written (its disk is full): what was to be noted is not begun. It is tried again, as where the client
    is away."""


def mark_new(root: int, beside: int) -> None:
    """Where there is neither a copy in `root` nor a ledger, say so, before a program can write the first file. Raises OSError."""
    if not os.listdir(root) and _NAME not in os.listdir(beside):
        os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=beside))


class LedgerFile:
    """In the directory `beside`. A killed process leaves what it had written: it is the kernel's by then."""

    def __init__(self, beside: int) -> None:
        self._beside = beside
        self._fd = -1
        self._ledger: Ledger | None = None
        self._size = self._least = 0
        """Bytes in it, and when it was last written anew."""

    def open(self, root: int, export: tuple[int, int], *, empty: bool) -> Book | None:
        """Go on with what is there, for the copy in `root` of an export whose directory is that (device, inode). A copy in which
        nothing is (`empty`), or was when it was made (`mark_new`), begins anew. None: it is of another one, or nothing is known
        of it. Raises Unwritable.

        Of a copy that is empty no base is believed, even where all else fits: an inode's number is given again, and its keeper
        would take each of the client's files for one that somebody has removed here."""
        status = os.fstat(root)
        header = Header(_boot(), (status.st_dev, status.st_ino), export)
        ledger = read(self._content())
        if ledger is None or ledger.header != header:
            if not (empty or (ledger is None and self._is_new())):
                return None
            ledger = Ledger(header)
        if empty:
            ledger.bases.clear()
        self._ledger = ledger
        self._write_anew(ledger)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_MARK, dir_fd=self._beside)
        return Book(ledger, self._write)

    def void(self) -> None:
        """From now on nothing is known of the copy: it is about to be removed, and who finds a part of it must not take the rest
        for what somebody has removed. Raises OSError."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NAME, dir_fd=self._beside)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, entry: Entry) -> None:
        if self._ledger is not None and self._size > max(_LEAST, 2 * self._least):
            self._write_anew(self._ledger)
        self._append(self._fd, self._size, encode(entry))
        self._size += len(encode(entry))

    def _write_anew(self, ledger: Ledger) -> None:
        """Only what holds. Killed or failed, the old one is what there is."""
        try:
            fd = os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._beside)
            try:
                size = 0
                for entry in ledger.entries():
                    data = encode(entry)
                    self._append(fd, size, data)
                    size += len(data)
                os.rename(_NEW, _NAME, src_dir_fd=self._beside, dst_dir_fd=self._beside)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(_NEW, dir_fd=self._beside)
                raise
        except OSError as error:
            raise _unwritable(error) from None
        self.close()
        self._fd, self._size, self._least = fd, size, size

    def _append(self, fd: int, size: int, data: bytes) -> None:
        """All of it or nothing: what stands behind a part of an entry would never be read."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError as error:
            os.ftruncate(fd, size)
            os.lseek(fd, size, os.SEEK_SET)
            raise _unwritable(error) from None

    def _is_new(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.stat(_MARK, dir_fd=self._beside, follow_symlinks=False)
            return True
        return False

    def _content(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._beside)
            with open(fd, "rb") as file:
                return file.read()
        return b""


def _unwritable(error: OSError) -> Unwritable:
    return Unwritable(f"what is the same on both sides cannot be noted: {error.strerror}")


def _boot() -> str:
    """This start of the machine; '' where nobody says."""
    # As bytes: a codec may have to be imported, by a process that has dropped the rights to read it.
    with contextlib.suppress(OSError), open(_BOOT, "rb") as file:
        return file.read().strip().decode()
    return ""
