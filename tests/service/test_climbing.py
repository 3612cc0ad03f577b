"""symlinks: inside, with real programs: a directory moves to where its links may still be followed, and is copied elsewhere."""

import os
import subprocess
from typing import Any

import pytest
from harness import Mounted, Stage, outcome
from harness.hostile import SILENCE, Child, HostileClient, attributes, directory, honest, reply
from harness.waiting import records

from fuse_gated.wire.messages import Ask


@pytest.fixture
def mounted(own_stage: Stage) -> Mounted:
    mounted = own_stage.mount()
    (mounted.export / "top").write_text("the export's own")
    (mounted.export / "a/b/c").mkdir(parents=True)
    (mounted.export / "a/b/c/link").symlink_to("../../../top")
    (mounted.export / "a/b/c/near").symlink_to("../file")
    return mounted


def test_mv_copies_what_may_not_be_renamed(mounted: Mounted) -> None:
    deep, shallow = mounted.path / "a/b/c", mounted.path / "c"
    assert (deep / "link").read_text() == "the export's own"
    assert outcome(os.rename, deep, shallow) == "EXDEV"
    [record] = records(mounted.server, kind="refused")
    assert (record["FUSE_GATED_PATH"], record["FUSE_GATED_NEW_PATH"], record["FUSE_GATED_RULE"]) == ("/a/b/c", "/c", "symlinks")
    subprocess.run(["mv", deep, shallow], check=True)
    assert os.readlink(mounted.export / "c/link") == "../../../top", "as it was"
    assert outcome(os.readlink, shallow / "link") == "EACCES", "and leads out of the export from there"
    assert not (mounted.export / "a/b/c").exists()


def test_what_leads_less_far_up_is_renamed(mounted: Mounted) -> None:
    (mounted.path / "a/b/c/link").unlink()
    assert os.readlink(mounted.path / "a/b/c/near") == "../file"
    os.rename(mounted.path / "a/b/c", mounted.path / "c")
    assert os.listdir(mounted.export / "c") == ["near"]


def test_a_client_that_holds_its_answers_back_gains_nothing(own_stage: Stage) -> None:
    """It could answer the rename right behind the link: the program would then walk '..' from where the directory is by then."""
    server = own_stage.server(own_stage.tenant())
    renames: list[int] = []
    names = {
        b"": directory(),
        b"a": directory(10),
        b"a/b": directory(11),
        b"a/b/c": directory(12),
        b"a/b/c/l": attributes(0o120777, 13, size=5),
    }

    def answer(operation: str, arguments: Any, request: Ask) -> Any:
        match operation:
            case "getattr":
                return names.get(arguments.target, "ENOENT")
            case "rename":
                renames.append(request.id)
                return SILENCE
            case "readlink":
                return b"../../../x"
        return honest(operation, arguments, request)

    def read() -> str:
        # Stands there already, because nobody else can walk there while the kernel renames what is above.
        os.chdir(mount / "a/b/c")
        os.write(told[1], b"x")
        os.read(go[0], 1)
        return outcome(os.readlink, "l")

    told, go = os.pipe(), os.pipe()
    with HostileClient(server, tenant="acme") as client:
        mount = client.open(answer)
        with Child(read) as reader, Child(os.stat, mount / "a/b/c") as looking:
            client.pump(lambda: False, told[0])
            client.pump(lambda: False, looking.fileno())
            with Child(os.rename, mount / "a/b", mount / "b") as mover:
                client.pump(lambda: bool(renames))
                os.write(go[1], b"x")
                client.pump(lambda: False, reader.fileno())
                assert reader.result() == "EACCES"
                client.send(reply(renames[0]))
                assert mover.result() is None
        assert records(server, kind="refused", path="/a/b/c/l", rule="symlinks")
        client.leave()
    for descriptor in (*told, *go):
        os.close(descriptor)
