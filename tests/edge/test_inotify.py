import struct
from pathlib import Path

import pytest

from fuse_gated.edge import inotify


def event(watch: int, mask: int, name: bytes = b"", padding: int = 0) -> bytes:
    return struct.pack("=iIII", watch, mask, 0, len(name) + padding) + name + bytes(padding)


def test_events_are_taken_apart() -> None:
    data = event(1, inotify.CREATE, b"name", 12) + event(-1, inotify.Q_OVERFLOW) + event(2, inotify.MODIFY, b"\xff" * 255, 1)
    assert list(inotify.events(data)) == [
        (1, inotify.CREATE, b"name"),
        (-1, inotify.Q_OVERFLOW, b""),
        (2, inotify.MODIFY, b"\xff" * 255),
    ]
    assert not list(inotify.events(b""))


@pytest.mark.parametrize(
    ("allowed", "share"), [("8192\n", 2048), ("192536\n", 48134), ("1048576\n", 65536), ("0\n", 0), ("many\n", 0), (None, 0)]
)
def test_a_client_leaves_most_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None, share: int
) -> None:
    if allowed is not None:
        (tmp_path / "limit").write_text(allowed)
    monkeypatch.setattr(inotify, "_MAX_USER_WATCHES", tmp_path / "limit")
    assert inotify.fair_share() == share
