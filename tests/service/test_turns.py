"""A program on the server and one on the client that take turns under a lock, thousands of times and without a pause: each sees
what the other wrote, whichever way it looks.

What is right is kept beside the mount, in memory that both share, and changed under the same lock.
"""

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Mounted, Stage, need

TURNS = 300
"""Of each."""
PLAYER = """
import fcntl, mmap, os, sys, time
way, root, truth_path, turns = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
fd = os.open(f"{root}/data", os.O_RDWR)
# Any close(2) of a file that is locked gives up the lock.
lock = os.open(f"{root}/lock", os.O_RDWR) if way in ("names", "opened") else fd
with open(truth_path, "r+b") as file:
    truth = mmap.mmap(file.fileno(), 4096)
on_server = sys.argv[5] == "server"
SIZE = 3 * 4096
mapped = mmap.mmap(fd, SIZE, prot=mmap.PROT_READ) if way == "mapped" and on_server else None

def number():
    return int.from_bytes(truth[:8], "little")

def take():
    # On the server a waiting lock is tried for by the client now and then, which would be no turn at all.
    while True:
        try:
            if way == "flock":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0)

def seen():
    if mapped is not None:
        return mapped[:]
    if way == "opened":
        with open(f"{root}/data", "rb") as file:
            return file.read()
    return os.pread(fd, 10**6, 0)

def check():
    now = number()
    if way == "grows":
        size = os.fstat(fd).st_size
        assert size == os.stat(f"{root}/data").st_size == now, f"{size} bytes, and {now} there should be"
        tail = os.pread(fd, 10, max(0, now - 3))
        assert tail == bytes([n % 251 for n in range(max(0, now - 3), now)]), tail
    elif way == "names":
        found = sorted(name for name in ("even", "odd") if os.path.exists(f"{root}/{name}"))
        assert found == (["odd"] if now % 2 else ["even"]), f"{found} at {now}"
        assert open(f"{root}/{found[0]}").read() == str(now), f"not {now}"
    else:
        content = seen()
        assert content == now.to_bytes(8, "little") * (SIZE // 8), f"{content[:8]} at {now}, {len(content)} bytes"

def change():
    then = number() + 1
    if way == "grows":
        assert os.pwrite(fd, bytes([(then - 1) % 251]), then - 1) == 1
    elif way == "names":
        names = ("odd", "even") if then % 2 else ("even", "odd")
        with open(f"{root}/{names[0]}", "w") as file:
            file.write(str(then))
        os.unlink(f"{root}/{names[1]}")
    else:
        for block in range(3):
            os.pwrite(fd, then.to_bytes(8, "little") * 512, block * 4096)
        if way == "timeless":
            os.utime(fd, ns=(10**9, 10**9))
    truth[:8] = then.to_bytes(8, "little")

done = 0
while done < turns:
    take()
    check()
    # Strictly in turn: whose it is says the number.
    if number() % 2 == on_server:
        change()
        done += 1
    if way == "flock":
        fcntl.flock(lock, fcntl.LOCK_UN)
    else:
        fcntl.lockf(lock, fcntl.LOCK_UN)
"""


@pytest.fixture(scope="module")
def mounts() -> Iterator[Callable[[str], Mounted]]:
    need("root", "fuse")
    with Stage("kernel") as stage:
        yield functools.cache(lambda mode: stage.mount(server=stage.server(stage.tenant(cache={"mode": mode})), name=mode))


@pytest.mark.parametrize(
    ("mode", "way"),
    [*(("watched", way) for way in ("read", "opened", "grows", "names", "flock", "mapped", "timeless")), ("strict", "read")],
)
def test_who_has_the_lock_sees_what_the_other_wrote(
    mounts: Callable[[str], Mounted], tmp_path: Path, mode: str, way: str
) -> None:
    """Where nobody tells of changes (strict), what is mapped and what bears the same time as before is not looked at again."""
    mounted = mounts(mode)
    work = mounted.work(way)
    first = b"" if way == "grows" else bytes(3 * 4096)
    (work.behind / "data").write_bytes(first)
    (work.behind / "lock").touch()
    (work.behind / "even").write_text("0")
    truth = tmp_path / "truth"
    truth.write_bytes(bytes(4096))
    turns = TURNS if way in ("read", "mapped", "timeless", "grows") else TURNS // 4
    players = [
        subprocess.Popen([sys.executable, "-c", PLAYER, way, str(path), str(truth), str(turns), side], stderr=subprocess.PIPE)
        for side, path in (("server", work.path), ("client", work.behind))
    ]
    try:
        for player in players:
            _, told = player.communicate(timeout=240)
            assert player.returncode == 0, told.decode()
    finally:
        for player in players:
            player.kill()
            player.wait()
    assert int.from_bytes(truth.read_bytes()[:8], "little") == 2 * turns
