from fuse_gated.edge.remembered import IDEMPOTENT, Remembered
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Reply
from fuse_gated.wire.tables import ARGUMENTS, OPERATION_OF

CHANGES = {
    "setattr", "symlink", "link", "mkdir", "rmdir", "unlink", "mknod", "rename", "open", "create", "opendir", "write", "flush",
    "fallocate", "copy_file_range", "setxattr", "removexattr", "setlk",
}  # fmt: skip


def unlink() -> wire.Unlink:
    return wire.Unlink(b"f")


def test_every_operation_changes_something_or_may_be_done_twice() -> None:
    idempotent = {OPERATION_OF[kind] for kind in IDEMPOTENT}
    assert idempotent | CHANGES == set(ARGUMENTS)
    assert not idempotent & CHANGES


def test_a_reply_is_kept_for_its_id_and_operation() -> None:
    kept = Remembered(10)
    assert kept.reply(2, unlink()) is None
    reply = Reply(2, "ENOENT")
    kept.keep(unlink(), reply)
    assert kept.reply(2, unlink()) is reply
    assert kept.reply(2, wire.Unlink(b"as it is called by now")) is reply
    assert kept.reply(4, unlink()) is None
    assert kept.reply(2, wire.Rmdir(b"f")) is None
    kept.forget()
    assert kept.reply(2, unlink()) is None


def test_what_may_be_done_twice_is_not_kept() -> None:
    kept = Remembered(10)
    kept.keep(wire.Read(1, 0, 10), Reply(2, None, b"data"))
    kept.keep(wire.Getattr(b""), Reply(4, "EIO"))
    assert len(kept) == 0


def test_what_is_the_servers_own_is_not_kept() -> None:
    kept = Remembered(10)
    kept.keep(unlink(), Reply(3, None))
    assert kept.reply(3, unlink()) is None


def test_a_lock_that_another_holds_is_not_kept() -> None:
    """The server asks again, under the same id: to wait for it longer, or with no wait when too many wait already."""
    kept = Remembered(10)
    for wait in (0, 5):
        lock = wire.Setlk(1, 2, 0, 9, 1, wait=wait)
        kept.keep(lock, Reply(2, "EAGAIN"))
        assert kept.reply(2, lock) is None
        kept.keep(lock, Reply(2, "EINTR"))
        assert kept.reply(2, lock) == Reply(2, "EINTR")
        kept.forget()


def test_a_failure_is_known_for_as_long_as_its_reply() -> None:
    kept = Remembered(3)
    assert not kept.has_failed([2])
    kept.keep(unlink(), Reply(2, None))
    kept.keep(wire.Rmdir(b"f"), Reply(2, "ENOENT"))
    kept.keep(wire.Mkdir(b"f", 0o755), Reply(2, "EEXIST"))
    assert kept.has_failed([4, 2])
    assert not kept.has_failed([4, 6])
    known = []
    for number in (4, 6, 8):
        kept.keep(unlink(), Reply(number, None))
        known.append(kept.has_failed([2]))
    assert known == [True, True, False]
    assert not kept._failures
    kept.keep(unlink(), Reply(10, "EIO"))
    assert kept.has_failed([10])
    kept.forget()
    assert not kept.has_failed([10])


def test_every_write_is_kept() -> None:
    """An older one that was done again would overwrite a newer one."""
    kept = Remembered(10)
    for number, append in ((2, False), (4, True)):
        write = wire.Write(1, 0, memoryview(b"data"), append)
        kept.keep(write, Reply(number, None, 4))
        assert kept.reply(number, write) == Reply(number, None, 4)


def test_the_oldest_goes() -> None:
    kept = Remembered(3)
    for number in range(2, 22, 2):
        kept.keep(unlink(), Reply(number, None))
    assert len(kept) == 3
    assert [number for number in range(2, 22, 2) if kept.reply(number, unlink())] == [16, 18, 20]
    kept.limit = 1
    kept.keep(unlink(), Reply(22, None))
    assert len(kept) == 1
