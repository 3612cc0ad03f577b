"""What the mount keeper holds of each mount, and how it is kept for the keeper that is started in its place.

Three descriptors of a mount are kept: its device, its state, and a label that says whose they are, with the daemon's note.
They are kept under short names, a kind and a number: systemd passes all names in one variable of the environment, and
execve(2) takes none of more than 128 KiB. With tenant and export in them, a keeper of 2,000 mounts could never be started anew.
"""

import os
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from fuse_gated.edge.memory import read_memory, write_memory

_DEVICE: Final = "device"
_STATE: Final = "state"
_LABELS: Final = ("label-a", "label-b")
"""In turn, so that the old one is there until the new one is: a keeper that is killed in between has lost neither."""


class Store(Protocol):
    """Keeps copies of descriptors for whoever is started in our place (edge/systemd.py, Manager)."""

    def keep(self, name: str, descriptor: int, /) -> None: ...

    def drop(self, name: str, /) -> None: ...


class NoStore:
    """What is not kept ends with us."""

    def keep(self, _name: str, _descriptor: int, /) -> None:
        return

    def drop(self, _name: str, /) -> None:
        return


class Label(msgspec.Struct, frozen=True):
    """Whose the descriptors of one number are, what cannot be read off the mount itself, and the daemon's note."""

    tenant: str
    export: str
    nosymfollow: bool
    note: bytes = b""


class Kept(msgspec.Struct):
    """A mount that is there. `device` is our copy of its /dev/fuse descriptor: while it is open, no death of a worker ends
    the connection, and the mount can be handed on. `turn` says which name its label is kept under."""

    number: int
    label: Label
    device: int
    state: int
    turn: int = 0

    def close(self) -> None:
        os.close(self.device)
        os.close(self.state)


class Shelf:
    """What is kept in a `store`. Numbers only grow, so that their order is that of the mounts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 1

    def add(self, label: Label, device: int, state: int) -> Kept:
        """Keep what belongs to a new mount. Both descriptors are the result's from now on. Raises OSError."""
        kept = Kept(self._next, label, device, state)
        self._write_label(kept, label)
        self._next += 1
        self._store.keep(_name(_DEVICE, kept.number), device)
        self._store.keep(_name(_STATE, kept.number), state)
        return kept

    def note(self, kept: Kept, note: bytes) -> None:
        """Write another note on the label. Raises OSError, and then the old one stays."""
        before, kept.turn = kept.turn, 1 - kept.turn
        label = msgspec.structs.replace(kept.label, note=note)
        try:
            self._write_label(kept, label)
        except OSError:
            kept.turn = before
            raise
        self._store.drop(_name(_LABELS[before], kept.number))
        kept.label = label

    def remove(self, kept: Kept) -> None:
        """Keep nothing of it any more; its descriptors are closed."""
        kept.close()
        for kind in (_DEVICE, _STATE, _LABELS[kept.turn]):
            self._store.drop(_name(kind, kept.number))

    def recover(self, passed: Mapping[str, int]) -> tuple[list[Kept], dict[str, int]]:
        """What an earlier keeper kept, in the order of the mounts, and descriptors that are of no use because others are
        missing or they are of another version's making: `discard` them once their mounts are gone."""
        found: list[Kept] = []
        useless = dict(passed)
        for device_name, device in passed.items():
            kind, _, number = device_name.partition(" ")
            state = passed.get(f"{_STATE} {number}")
            # Both labels are there where a keeper was killed while it changed the note. Whoever wrote that was told nothing yet,
            # so either is right.
            turn = next((turn for turn in (0, 1) if f"{_LABELS[turn]} {number}" in passed), None)
            if kind != _DEVICE or not number.isdecimal() or state is None or turn is None:
                continue
            try:
                label = _LABEL.decode(read_memory(passed[f"{_LABELS[turn]} {number}"]))
            except (OSError, msgspec.DecodeError):
                continue
            found.append(Kept(int(number), label, device, state, turn))
            del useless[device_name], useless[f"{_STATE} {number}"]
            os.close(useless.pop(f"{_LABELS[turn]} {number}"))
        found.sort(key=lambda kept: kept.number)
        self._next = 1 + max((kept.number for kept in found), default=0)
        return found, useless

    def discard(self, useless: Mapping[str, int]) -> None:
        """Close descriptors, and keep them no longer."""
        for name, descriptor in useless.items():
            os.close(descriptor)
            self._store.drop(name)

    def _write_label(self, kept: Kept, label: Label) -> None:
        descriptor = write_memory("fuse-gated-label", msgspec.msgpack.encode(label))
        try:
            self._store.keep(_name(_LABELS[kept.turn], kept.number), descriptor)
        finally:
            os.close(descriptor)


def is_kept(name: str) -> bool:
    """Whether a descriptor was kept by a keeper, by the name under which it is passed; also by one of an earlier version, which
    kept devices under TENANT/EXPORT."""
    kind, _, number = name.partition(" ")
    return "/" in name or (kind in (_DEVICE, _STATE, *_LABELS) and number.isdecimal())


def _name(kind: str, number: int) -> str:
    # Without ':' (FDNAME= of sd_notify(3)).
    return f"{kind} {number}"


_LABEL: Final = msgspec.msgpack.Decoder(Label)

__all__ = ["Kept", "Label", "NoStore", "Shelf", "Store", "is_kept"]
