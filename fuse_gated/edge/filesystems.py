"""Which filesystems answer from this machine, and which may wait for a network."""

from typing import Final

from fuse_gated.edge.syscalls import filesystem_type

_LOCAL: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0xCA451A4E,  # bcachefs
    }
)
"""f_type of statfs(2) (linux/magic.h). Their close(2) has nothing to wait for or to tell. What is not listed counts as
remote, which costs speed alone."""


class Filesystems:
    """Remembers the answer for each device."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def is_local(self, fd: int, device: int) -> bool:
        """`device`: st_dev of the file that `fd` stands for. Raises OSError as statfs(2)."""
        local = self._known.get(device)
        if local is None:
            if len(self._known) > 4096:
                self._known.clear()  # Mounts come and go; their device numbers are used again.
            local = self._known[device] = filesystem_type(fd) in _LOCAL
        return local
