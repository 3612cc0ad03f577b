"""The ledger of a copy (replica/ledger.py) as a file beside it."""

import contextlib
import os
from typing import Final

from fuse_gated.replica.ledger import Book, Entry, Header, Ledger, encode, read

_NAME: Final = "ledger"
_NEW: Final = "ledger.new"
_MARK: Final = "new"
_BOOT: Final = "/proc/sys/kernel/random/boot_id"


def mark_new(root: int, beside: int) -> None:
    """Where there is neither a copy in `root` nor a ledger, say so, before a program can write the first file. Raises OSError."""
    if not os.listdir(root) and _NAME not in os.listdir(beside):
        os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=beside))


class LedgerFile:
    """In the directory `beside`. A killed process leaves what it had written: it is the kernel's by then."""

    def __init__(self, beside: int) -> None:
        self._beside = beside
        self._fd = -1

    def open(self, root: int, export: tuple[int, int], *, empty: bool) -> Book | None:
        """Go on with what is there, for the copy in `root` of an export whose directory is that (device, inode). A copy in which
        nothing is (`empty`), or was when it was made (`mark_new`), begins anew. None: it is of another one, or nothing is known
        of it. Raises OSError."""
        status = os.fstat(root)
        header = Header(_boot(), (status.st_dev, status.st_ino), export)
        ledger = read(self._content())
        if ledger is None or ledger.header != header:
            if not (empty or (ledger is None and self._is_new())):
                return None
            ledger = Ledger(header)
        self.close()
        self._fd = os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._beside)
        for entry in ledger.entries():
            self._write(entry)
        os.rename(_NEW, _NAME, src_dir_fd=self._beside, dst_dir_fd=self._beside)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_MARK, dir_fd=self._beside)
        return Book(ledger, self._write)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, entry: Entry) -> None:
        data = memoryview(encode(entry))
        while data:
            data = data[os.write(self._fd, data) :]

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


def _boot() -> str:
    """This start of the machine; '' where nobody says."""
    # As bytes: a codec may have to be imported, by a process that has dropped the rights to read it.
    with contextlib.suppress(OSError), open(_BOOT, "rb") as file:
        return file.read().strip().decode()
    return ""
