"""What is answered while the client is away although it is asked for, so that programs that only look around do not wait."""

import pytest
from harness.sansio import DIRECTORY, ROOT, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Outage

O_NONBLOCK, O_DIRECTORY, O_DIRECTORY_ARM = 0o4000, 0o200000, 0o40000


def away(mode: str = "wait") -> Mount:
    mount = Mount(outage=Outage(mode=mode))
    mount.lookup(b"d/f")
    mount.t.suspend(mount.now)
    mount.gather()
    mount.clear()
    return mount


def failed(mount: Mount, request: op.Request) -> str:
    """The errno of what is answered at once; '' if it waits."""
    answers = mount.answers(mount.ask(request))
    return errno_name(answers[0].errno) if answers else ""


@pytest.mark.parametrize(
    ("flags", "errno"),
    [(O_NONBLOCK, "EAGAIN"), (0, ""), (O_NONBLOCK | O_DIRECTORY, ""), (O_NONBLOCK | O_DIRECTORY_ARM, ""), (O_DIRECTORY, "")],
    ids=["df", "open", "opendir", "opendir on ARM", "find"],
)
def test_who_opens_the_root_only_to_wake_it_goes_on_without(flags: int, errno: str):
    assert failed(away(), op.Opendir(ROOT, flags)) == errno
    assert failed(away("cached"), op.Opendir(b"", flags)) == errno


def test_other_directories_are_waited_for():
    mount = away()
    assert failed(mount, op.Opendir(mount.t.inodes.find(b"d").id, O_NONBLOCK)) == ""


@pytest.mark.parametrize(
    "request_",
    [
        op.Getxattr(ROOT, b"system.posix_acl_access", 0),
        op.Setxattr(ROOT, b"security.x", b"", 0),
        op.Removexattr(ROOT, b"trusted.x"),
    ],
    ids=lambda request: type(request).__name__,
)
@pytest.mark.parametrize("mode", ["wait", "cached", "fail"])
def test_attributes_that_are_never_served_are_refused_as_ever(request_: op.Request, mode: str):
    assert failed(away(mode), request_) == "EOPNOTSUPP"


@pytest.mark.parametrize(("mode", "errno"), [("wait", ""), ("cached", ""), ("fail", "EIO")])
def test_attributes_that_are_served_are_the_client_s_to_tell(mode: str, errno: str):
    assert failed(away(mode), op.Getxattr(ROOT, b"user.x", 0)) == errno


def test_once_it_is_over_everybody_gets_the_same():
    mount = away()
    waiting = mount.ask(op.Mkdir(ROOT, b"new", 0o755, 0))
    mount.t.lost(mount.now)
    mount.gather()
    assert errno_name(mount.answer(waiting).errno) == "EIO"
    assert failed(mount, op.Mkdir(ROOT, b"new", 0o755, 0)) == "EIO"


def test_a_client_that_was_there_to_the_end():
    mount = Mount()
    mount.t.lost(mount.now)
    assert failed(mount, op.Mkdir(ROOT, b"new", 0o755, 0)) == "ENOTCONN"


def test_who_had_asked_already_is_answered_too():
    """df(1) that began just before."""
    mount = Mount()
    root, filesystem = attributes(1, DIRECTORY), op.Filesystem(1, 2, 3, 4, 5, 6, 7, 8)
    mount.do(op.Getattr(ROOT, None), root)
    mount.do(op.Statfs(ROOT), filesystem)
    waiting = [mount.ask(op.Statfs(ROOT)), mount.ask(op.Getattr(ROOT, None))]
    other = mount.ask(op.Mkdir(ROOT, b"new", 0o755, 0))
    mount.t.suspend(mount.now)
    mount.gather()
    assert mount.answer(waiting[0]) == filesystem
    assert isinstance(mount.answer(waiting[1]), op.Attr)
    assert not mount.answers(other)
