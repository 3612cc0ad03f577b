"""What is remembered where the driver names nodes by their paths: with libfuse, because there is no node to remember it.

libfuse 2 cannot name a file that has lost its name. When an open file is removed or replaced it has it renamed to
.fuse_hidden… instead, and removes that when the file is closed (fuse.c, hide_node). Here the file is removed at once, so that
nothing of the kind shows on the client and no rule has to allow such names; the hidden name becomes an alias: it stands for
the handles that are open on the file.
"""

import re
from typing import Final

from fuse_gated.operations import Attributes
from fuse_gated.paths import is_beneath
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Identity, identity_of

REMEMBERED: Final = 4096
"""Names whose files are remembered: those that the kernel has looked up last."""

LINGERS: Final = 10.0
"""Seconds in which libfuse has learnt of a close(2) that we have seen."""

_TIDY: Final = 256
_HIDDEN: Final = re.compile(rb"\.fuse_hidden[0-9a-f]{16}")


def is_hidden_name(name: bytes) -> bool:
    """Whether libfuse keeps this name for itself."""
    return name.startswith(b".fuse_hidden") and _HIDDEN.fullmatch(name) is not None


class ByPath:
    """The names of one mount that were seen, and the open files that have none."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._seen: dict[bytes, Identity] = {}
        self._released: dict[bytes, float] = {}
        self._aliases: dict[bytes, list[Handle]] = {}
        self._nameless: set[int] = set()
        self._tidy_at = _TIDY

    def saw(self, path: bytes, attributes: Attributes) -> None:
        """The client told what `path` is."""
        self._seen.pop(path, None)
        self._seen[path] = identity_of(attributes)
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def identity(self, path: bytes) -> Identity | None:
        """Which file `path` was when it was looked up last."""
        return self._seen.get(path)

    def removed(self, path: bytes, alias: bytes | None) -> None:
        """The name is gone. What is open on it lives on as `alias`, if libfuse named one."""
        self._seen.pop(path, None)
        handles = self._on(path) if alias is not None else []
        if alias is not None and handles:
            self._aliases[alias] = handles
            self._nameless.update(handle.id for handle in handles)
            if len(self._aliases) >= self._tidy_at:
                self._tidy()

    def renamed(self, old: bytes, new: bytes) -> None:
        """What is open follows its name, and what lies beneath it too."""
        for path in [path for path in self._seen if is_beneath(path, old) or is_beneath(path, new)]:
            del self._seen[path]
        for handle in self._handles:
            if handle.node is None and handle.id not in self._nameless and is_beneath(handle.path, old):
                moved = new + handle.path[len(old) :]
                self._handles.locks.moved(handle.path, moved)
                handle.path = moved

    def released(self, path: bytes, now: float) -> None:
        """A file that had this name was closed."""
        self._released.pop(path, None)
        self._released[path] = now
        if len(self._released) > REMEMBERED:
            del self._released[next(iter(self._released))]

    def may_be_hidden(self, path: bytes, now: float) -> bool:
        """Whether libfuse may take this file for open: it is, or was until a moment ago. Otherwise it is somebody else who
        gives a file libfuse's name."""
        return bool(self._on(path)) or now < self._released.get(path, now - LINGERS) + LINGERS

    def open_on(self, alias: bytes, *, writable: bool = False) -> Handle | None:
        """A handle of the nameless file that `alias` stands for, if it stands for one."""
        for handle in self._aliases.get(alias, ()):
            if self._handles.get(handle.id) is handle and (not writable or handle.flags & 3):
                return handle
        return None

    def opened_again(self, alias: bytes, handle: Handle) -> None:
        """A nameless file was opened anew (through /proc/PID/fd)."""
        if alias in self._aliases:
            self._aliases[alias].append(handle)
            self._nameless.add(handle.id)

    def forget(self, alias: bytes) -> bool:
        """libfuse removes the hidden name, because nothing is open on it any more. False for what is no alias."""
        handles = self._aliases.pop(alias, None)
        if handles is None:
            return False
        self._nameless.difference_update(handle.id for handle in handles)
        return True

    def _tidy(self) -> None:
        """libfuse forgets a file that is closed while it is being hidden."""
        for alias in [alias for alias in self._aliases if self.open_on(alias) is None]:
            self.forget(alias)
        self._tidy_at = 2 * len(self._aliases) + _TIDY

    def _on(self, path: bytes) -> list[Handle]:
        return [
            handle
            for handle in self._handles
            if handle.node is None and not handle.directory and handle.path == path and handle.id not in self._nameless
        ]
