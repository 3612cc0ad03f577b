"""What a hostile tenant or client tried on a live mount, kept from coming back."""

from __future__ import annotations

from harness.sansio import DIRECTORY, LINK, ROOT, Mount

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Identity
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.operations import Caller
from fuse_gated.turnstile import Limits

MIB = 2**20


def failure(mount: Mount, number: int) -> str:
    answer = mount.answer(number)
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


def test_a_link_that_is_moved_while_the_client_is_asked_is_judged_where_it_is() -> None:
    mount = Mount()
    directory = mount.lookup(b"a", DIRECTORY)
    below = mount.lookup(b"b", DIRECTORY, parent=directory)
    link = mount.lookup(b"l", LINK, parent=below)
    asked = mount.ask(op.Readlink(link))
    assert isinstance(mount.do(op.Rename(directory, b"b", ROOT, b"b", 0), None), op.Done)
    # Inside from /a/b, outside from /b.
    mount.reply(asked, b"../../etc/shadow")
    assert failure(mount, asked) == "ESTALE"


def held_writes(seconds: float = 30.0, most: int = 64 * MIB) -> tuple[Mount, int]:
    """A mount that may write 1 MiB a second, which is used up, and a file open on it."""
    limits = TenantLimits(bytes={"write": float(MIB)}, on_excess="delay")
    mount = Mount(limits=limits, bounds=Limits(deadline=seconds, max_bytes_in_flight=most))
    handle = mount.open(mount.lookup(b"f"))
    mount.ask(op.Write(2, handle, 0, bytes(MIB)))
    mount.clear()
    return mount, handle


def test_who_is_interrupted_leaves_the_limiter_to_the_others() -> None:
    mount, handle = held_writes()
    waiting = [mount.ask(op.Write(2, handle, 0, bytes(MIB))) for _ in range(10)]
    for number in waiting:
        mount.interrupt(number)
    mount.tick(0.5)
    assert [failure(mount, number) for number in waiting] == ["EINTR"] * 10
    mount.clear()
    mount.ask(op.Write(2, handle, 0, bytes(MIB)))
    assert mount.sent == []
    mount.tick(0.51)
    assert [ask.operation for ask in mount.sent] == ["write"]


def test_nothing_is_held_back_longer_than_its_deadline() -> None:
    mount, handle = held_writes(seconds=3.5)
    numbers = [mount.ask(op.Write(2, handle, 0, bytes(MIB))) for _ in range(5)]
    assert [bool(mount.answers(number)) for number in numbers] == [False, False, False, True, True]
    assert failure(mount, numbers[4]) == "EAGAIN"
    assert mount.records[-1].kind == "limited"


def test_what_is_held_back_is_bounded_in_bytes() -> None:
    mount, handle = held_writes(most=2 * MIB)
    numbers = [mount.ask(op.Write(2, handle, 0, bytes(MIB))) for _ in range(3)]
    assert [bool(mount.answers(number)) for number in numbers] == [False, False, True]
    mount.tick(1.01)
    assert not mount.answers(mount.ask(op.Write(2, handle, 0, bytes(MIB))))


def test_who_was_taken_out_of_the_policy_changes_nothing_through_what_is_open() -> None:
    mount = Mount(identity=Identity(owner_uid=1, owner_gid=1, uids=(1000,)))
    file, directory = mount.lookup(b"f"), mount.opendir()
    stranger = Caller(6666, 6666, 99)
    for request in (
        op.Setattr(file, size=0), op.Setattr(file, mode=0o777), op.Setxattr(file, b"user.a", b"", 0),
        op.Removexattr(file, b"user.a"), op.Getxattr(file, b"user.a", 0), op.Listxattr(file, 0),
        op.Readdir(ROOT, directory, 0, 4096, False),
    ):  # fmt: skip
        assert failure(mount, mount.ask(request, stranger)) == "EACCES"


def test_names_that_all_claim_to_be_one_file_cost_a_bounded_number_of_notices() -> None:
    mount = Mount()
    nodes = [mount.lookup(b"n%d" % number, inode=5, nlink=2) for number in range(1000)]
    handle = mount.open(nodes[0])
    mount.clear()
    mount.do(op.Write(nodes[0], handle, 0, b"x"), 1)
    assert len(mount.log) < 600
