"""Names that the client's own programs give to other files, again and again, while programs on the mount open them."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Stage, need
from harness.hostile import Child, HostileClient, directory, file, honest
from harness.log import DEADLINE
from harness.server import ALLOW_ALL
from harness.waiting import until

from fuse_gated.wire.messages import OpenedFile

TENANT = {"users": ["root", "nobody"], "rules": ALLOW_ALL}


class Restless:
    """A client each of whose names is another file's whenever it is looked at. A handle is the number of its inode."""

    def __init__(self) -> None:
        self._inodes = itertools.count(100)
        self.released: list[int] = []

    def __call__(self, operation: str, arguments: Any, request: Any) -> Any:
        target = getattr(arguments, "target", getattr(arguments, "path", b""))
        if operation in ("open", "opendir") or (operation == "getattr" and target != b""):
            inode = target if isinstance(target, int) else next(self._inodes)
            is_directory = operation == "opendir" or (isinstance(target, bytes) and target.endswith(b"d"))
            found = directory(inode) if is_directory else file(inode)
            return found if operation == "getattr" else OpenedFile(inode, found)
        if operation in ("release", "releasedir"):
            self.released.append(arguments.handle)
        return honest(operation, arguments, request)


def open_and_look(mount: Path) -> str:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        descriptor = os.open(mount / "f", flags)
        assert os.fstat(descriptor).st_size == 5
        os.close(descriptor)
    os.stat(mount / "f")
    assert sorted(os.listdir(mount / "d")) == ["d", "f", "l"]
    descriptor = os.open(mount / "d/f", os.O_RDONLY)
    os.close(descriptor)
    return "done"


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> None:
    need("root", "fuse")
    if "kernel" not in request.config.getoption("--drivers"):
        pytest.skip("run with --drivers kernel")


def test_a_name_that_is_another_file_each_time_can_be_opened(kernel: None) -> None:
    """open(2) looks a path up anew after an ESTALE, and only once."""
    with Stage("kernel") as stage:
        server = stage.server({"tenants": {"acme": TENANT}})
        restless = Restless()
        with HostileClient(server, tenant="acme") as client:
            mount = client.open(restless)
            with Child(open_and_look, mount) as child:
                client.pump(lambda: bool(child.wait(0)))
                assert child.result() == "done"
            opened = [arguments for name, arguments in client.requests if name in ("open", "opendir")]
            client.pump(lambda: len(restless.released) == len(opened))


RENAMES = """
import os, sys
top = sys.argv[1]
for number in range(10**9):
    for name in ("file", "directory/f"):
        with open(f"{top}/.new", "w") as new:
            new.write(f"{number:9}\\n")
        os.rename(f"{top}/.new", f"{top}/{name}")
"""
LOOKS = """
import collections, errno, json, os, sys
top, count = sys.argv[1], int(sys.argv[2])
met = collections.Counter()
def do(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        met[f"{function.__name__} {errno.errorcode[error.errno]}"] += 1
        return None
for number in range(count):
    for name in ("file", "directory/f"):
        path = f"{top}/{name}"
        descriptor = do(os.open, path, os.O_RDONLY if number % 3 else os.O_RDWR)
        if descriptor is not None:
            do(os.fstat, descriptor)
            if len(do(os.pread, descriptor, 20, 0) or b"0123456789") != 10:
                met["short"] += 1
            os.close(descriptor)
        do(os.stat, path)
        do(os.access, path, os.R_OK)
print(json.dumps(met))
"""


@pytest.mark.parametrize("mode", ["watched", "strict"])
def test_files_that_programs_of_the_client_replace_are_there_at_every_moment(kernel: None, mode: str) -> None:
    with Stage("kernel") as stage:
        server = stage.server(Stage.tenant(cache={"mode": mode}))
        client = stage.export(server)
        mount = client.mount_path()
        (client.directory / "directory").mkdir()
        for name in ("file", "directory/f"):
            (client.directory / name).write_text(f"{0:9}\n")
        until((mount / "directory/f").exists, "they are seen")
        renames = subprocess.Popen([sys.executable, "-c", RENAMES, client.directory])
        try:
            looks = [
                subprocess.Popen([sys.executable, "-c", LOOKS, mount, "100"], stdout=subprocess.PIPE, text=True) for _ in range(2)
            ]
            assert [json.loads(one.communicate(timeout=4 * DEADLINE)[0]) for one in looks] == [{}, {}]
            assert renames.poll() is None
        finally:
            renames.kill()
            renames.wait()
