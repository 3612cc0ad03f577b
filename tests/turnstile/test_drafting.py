"""turnstile/drafting.py: what somebody has just made and written is told without asking the client, as long as it is only his."""

from typing import Any

import msgspec
import pytest
from harness.sansio import DIRECTORY, EVERYTHING, O_RDONLY, O_RDWR, O_WRONLY, ROOT, Errno, Mount, Tree, attributes

from fuse_gated import operations as op
from fuse_gated.gate.tenant import Cache, Outage
from fuse_gated.gate.verdict import ALL, READ, Rule
from fuse_gated.turnstile import drafting
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import OpenedFile

EMPTY = attributes(21, size=0, blocks=0)
O_EXCL, O_DIRECT = 0o200, 0o40000
SETGID = 0o2000


class Made:
    """A file that was made in a directory that the client watches; `node` and `handle` are the kernel's."""

    def __init__(
        self,
        found: Any = EMPTY,
        *,
        flags: int = O_RDWR,
        listed: bool = True,
        silent: bool = False,
        mount: Mount | None = None,
        name: bytes = b"new",
        remote: int = 77,
        **other: Any,
    ) -> None:
        self.mount = mount or Mount(watches=True, orders=True, **other)
        self.name = name
        if listed and mount is None:
            self.mount.known(Tree({b"d": None}))
        made = self.mount.do(op.Create(ROOT, name, flags, 0o644, 0), OpenedFile(remote, found, silent))
        assert isinstance(made, op.Created), made
        self.node, self.handle, self.remote = made.entry.node, made.opened.handle, remote
        self.mount.clear()

    def write(self, data: bytes, offset: int = 0, **other: Any) -> int:
        return self.mount.ask(op.Write(self.node, self.handle, offset, data, **{"from_cache": False, **other}))

    def read(self, offset: int = 0, size: int = 4096) -> bytes | None:
        """None: the client is asked."""
        return self._told(op.Read(self.node, self.handle, offset, size), "data")

    def like(self) -> Any:
        """What the kernel is told of it; None: the client is asked."""
        return self._told(op.Getattr(self.node, self.handle), "attributes")

    def _told(self, request: op.Request, what: str) -> Any:
        number = self.mount.ask(request)
        answers = self.mount.answers(number)
        if not answers:
            return None
        assert number not in [frame.id for frame in self.mount.sent]
        found = getattr(answers[0], what)
        return bytes(found) if what == "data" else found

    @property
    def is_drafted(self) -> bool:
        return self.read() is not None

    def notice(self, **changes: int) -> None:
        self.mount.notice(self.name, attributes=(msgspec.structs.replace(EMPTY, **changes),))


def test_the_client_is_not_asked_for_what_was_just_written() -> None:
    made = Made()
    assert made.like().size == 0
    assert made.read() == b""
    number = made.write(b"world", 6)
    made.write(b"hello ")
    assert made.mount.answer(number) == op.Count(5)
    assert made.read() == b"hello world"
    assert made.read(8, 2) == b"rl"
    assert (made.like().size, made.like().blocks) == (11, 8)
    assert [frame.operation for frame in made.mount.sent] == ["write", "write"]


def test_the_kernel_is_to_ask_each_time() -> None:
    made = Made()
    answer = made.mount.answer(made.mount.ask(op.Getattr(made.node, None)))
    assert isinstance(answer, op.Attr)
    assert answer.valid == 0.0


def test_an_append_goes_to_the_end() -> None:
    made = Made()
    made.write(b"one")
    made.write(b"two", 0, append=True)
    assert made.read() == b"onetwo"


def test_what_its_maker_sets_it_keeps() -> None:
    made = Made(flags=O_RDWR | O_EXCL, silent=True)
    made.write(b"one")
    answer = made.mount.answer(made.mount.ask(op.Setattr(made.node, made.handle, mtime=5 * 10**9)))
    assert isinstance(answer, op.Attr)
    assert made.like().mtime == 5 * 10**9
    assert made.read() == b"one"
    made.notice()
    assert made.is_drafted


@pytest.mark.parametrize(
    "setting",
    [
        {"listed": False},
        {"found": attributes(21, size=1)},
        {"found": attributes(21, size=0, nlink=2)},
        {"found": attributes(21, size=0, mode=0o100644 | SETGID)},
        {"flags": O_RDWR | O_DIRECT},
        {"cache": Cache("ttl")},
        {"cache": Cache("strict")},
        {"writes": "through"},
    ],
    ids=["unwatched", "not-empty", "two-names", "setgid", "direct", "ttl", "strict", "through"],
)
def test_others_are_asked_for(setting: dict[str, Any]) -> None:
    assert not Made(**setting).is_drafted


def test_a_client_that_keeps_no_order_is_asked() -> None:
    mount = Mount(watches=True)
    mount.known(Tree({}))
    assert not Made(mount=mount).is_drafted


# It ends.


@pytest.mark.parametrize(("changes", "expected"), [({}, True), ({"atime": 7}, True), ({"size": 5}, False), ({"mtime": 7}, False)])
def test_with_the_first_notice_that_says_more_than_that_it_was_made(changes: dict[str, int], expected: bool) -> None:
    made = Made()
    made.write(b"hello")
    made.notice(**changes)
    assert made.is_drafted is expected


@pytest.mark.parametrize("told", ["gone", "bare", "overflow"])
def test_with_any_other_notice(told: str) -> None:
    made = Made()
    made.write(b"hello")
    if told == "gone":
        made.mount.notice(b"new", attributes=(None,))
    else:
        made.mount.notice(*([b"new"] if told == "bare" else []), overflow=told == "overflow")
    assert not made.is_drafted


def test_when_it_grows_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.tree.draft.LARGEST", 10)
    made = Made()
    made.write(b"0123456789")
    assert made.is_drafted
    made.write(b"x", 10)
    assert not made.is_drafted


def test_when_somebody_else_writes() -> None:
    made = Made()
    made.write(b"hello")
    number = made.mount.ask(op.Open(made.node, O_WRONLY))
    made.mount.reply(number, OpenedFile(78, attributes(21, size=0)))
    other = made.mount.answer(number)
    assert isinstance(other, op.Opened)
    made.mount.ask(op.Write(made.node, other.handle, 0, b"j", from_cache=False))
    assert not made.is_drafted


def test_what_it_is_like_only_its_maker_is_told_while_others_have_it_open() -> None:
    made = Made()
    number = made.mount.ask(op.Open(made.node, O_RDONLY))
    made.mount.reply(number, OpenedFile(78, EMPTY))
    made.mount.t.cache.changes(made.name)
    assert made.like() is None
    assert made.read() == b""


@pytest.mark.parametrize(
    "request_of",
    [
        lambda made: op.Fallocate(made.node, made.handle, 0, 100, 0),
        lambda made: op.Setattr(made.node, made.handle, size=3),
        lambda made: op.Setattr(made.node, made.handle, mode=0o600),
        lambda made: op.CopyFileRange(made.node, made.handle, 0, made.node, made.handle, 100, 5),
        lambda made: op.Write(made.node, made.handle, 0, b"page", from_cache=True),
    ],
    ids=["fallocate", "truncate", "chmod", "copy", "mmap"],
)
def test_with_a_change_that_the_client_is_waited_for(request_of: Any) -> None:
    made = Made()
    made.write(b"hello")
    made.mount.ask(request_of(made))
    assert not made.is_drafted


def test_with_an_error() -> None:
    made = Made()
    number = made.write(b"hello")
    made.write(b"world", 5)
    assert made.is_drafted
    made.mount.reply(number, Errno("ENOSPC"))
    assert not made.is_drafted


def test_with_a_write_that_was_not_done_whole() -> None:
    made = Made()
    number, after = made.write(b"hello"), made.write(b"world", 5)
    made.mount.reply(number, 2)
    made.mount.reply(after, 5)
    assert not made.is_drafted


def test_not_with_what_the_client_has_done() -> None:
    made = Made()
    number = made.write(b"hello")
    made.mount.reply(number, 5)
    assert made.read() == b"hello"


def test_with_its_name() -> None:
    made = Made()
    number = made.mount.ask(op.Unlink(ROOT, b"new"))
    made.mount.reply(number, None)
    assert not made.is_drafted, "nobody tells of changes any more"


def test_with_another_files_taking_its_name() -> None:
    other = Made(attributes(300, size=0), name=b"other", remote=300)
    made = Made(mount=other.mount)
    number = made.mount.ask(op.Rename(ROOT, b"other", ROOT, b"new", 0))
    made.mount.reply(number, None)
    assert not made.is_drafted


def test_with_its_moving_away() -> None:
    made = Made()
    number = made.mount.ask(op.Rename(ROOT, b"new", ROOT, b"elsewhere", 0))
    made.mount.reply(number, None)
    assert not made.is_drafted


def test_with_a_second_name() -> None:
    made = Made()
    number = made.mount.ask(op.Link(made.node, ROOT, b"link"))
    made.mount.reply(number, attributes(21, size=0, nlink=2))
    assert not made.is_drafted


def test_with_a_notice_of_what_an_answer_has_said_before() -> None:
    made = Made()
    made.mount.reply(made.write(b"A"), 1)
    found = msgspec.structs.replace(EMPTY, size=5, mtime=1, ctime=9)
    number = made.mount.ask(op.Open(made.node, O_RDONLY))
    made.mount.reply(number, OpenedFile(78, found))
    assert made.mount.do(op.Release(made.node, made.mount.answer(number).handle)) == op.Done()
    made.mount.notice(b"new", attributes=(found,))
    assert not made.is_drafted


def test_with_a_hole_of_which_nobody_knows_how_it_is_kept() -> None:
    made = Made()
    made.write(b"x", 4096)
    assert made.is_drafted
    made.write(b"x", 900_000)
    assert not made.is_drafted


def test_what_its_maker_sets_leaves_the_blocks() -> None:
    made = Made(flags=O_RDWR | O_EXCL, silent=True)
    made.write(b"x" * 5000)
    made.mount.ask(op.Setattr(made.node, made.handle, mode=0o600))
    assert (made.like().mode & 0o777, made.like().blocks) == (0o600, 16)


# What is written through a name that has gone.


def test_a_file_that_lives_on_under_another_name() -> None:
    """Of that one nobody tells that it was changed (IN_EXCL_UNLINK of inotify(7))."""
    made = Made()
    mount = made.mount
    linked = attributes(21, size=0, nlink=2)
    mount.reply(mount.ask(op.Link(made.node, ROOT, b"y")), linked)
    mount.reply(mount.ask(op.Unlink(ROOT, b"new")), None)
    alone = attributes(21, size=0)
    mount.notice(b"y", attributes=(alone,))
    assert mount.t.cache.attributes(b"y", mount.now) == alone
    mount.clear()
    made.write(b"more")
    assert mount.t.cache.attributes(b"y", mount.now) is None
    assert [told for told in mount.story if told.startswith("forget")]


def test_what_was_told_before_it_was_written_is_not_remembered() -> None:
    made = Made(outage=Outage("cached"))
    node = made.mount.t.inodes.get(made.node)
    assert node is not None
    assert node.attributes is not None
    made.write(b"hello")
    assert node.attributes is None


def test_when_the_client_is_lost() -> None:
    made = Made()
    made.write(b"hello")
    made.mount.t.forget_all_that_is_watched()
    assert not made.is_drafted


# There are not many.


def test_some_are_kept_at_once() -> None:
    first = Made()
    mount = first.mount
    others = [
        Made(attributes(100 + number, size=0), mount=mount, name=b"f%d" % number, remote=100 + number)
        for number in range(drafting.MOST)
    ]
    assert [made.is_drafted for made in [first, *others]] == [True] * drafting.MOST + [False]
    assert mount.do(op.Release(first.node, first.handle)) == op.Done()
    mount.clear()
    assert Made(attributes(300, size=0), mount=mount, name=b"last", remote=300).is_drafted


# A directory that was just made.


def mkdir(mount: Mount, found: Any, listing: tuple[Any, ...] | None, *, first: str = "mkdir") -> int:
    """Its node. What is to be in it the client says before or after it says that it has made it."""
    number = mount.ask(op.Mkdir(ROOT, b"made", 0o755, 0))
    asked = {frame.operation: frame.id for frame in mount.sent}
    assert list(asked) == ["mkdir", "gather"]
    for operation in sorted(asked, key=lambda operation: operation != first):
        mount.reply(asked[operation], found if operation == "mkdir" else listing)
    answer = mount.answer(number)
    assert isinstance(answer, op.Entry), answer
    mount.clear()
    return answer.node


NEW = attributes(55, DIRECTORY, nlink=2)
LISTING = (wire.Gathered(None, NEW, True, (), True),)


def is_known_to_be_empty(mount: Mount, node: int) -> bool:
    number = mount.ask(op.Lookup(node, b"x"))
    found = mount.answers(number)
    assert found in ([], [op.Entry(0, None, 1.0)])
    return bool(found)


@pytest.mark.parametrize(
    ("listing", "first", "expected"),
    [
        (LISTING, "mkdir", True),
        (LISTING, "gather", False),
        ((wire.Gathered("ENOENT", None, True),), "mkdir", False),
        ((wire.Gathered(None, attributes(56, DIRECTORY, nlink=2), True, (), True),), "mkdir", False),
        ((), "mkdir", False),
    ],
    ids=["listed", "listed-too-soon", "looked-for-too-soon", "another", "no-room"],
)
def test_what_is_put_into_it_is_not_looked_for(listing: tuple[Any, ...], first: str, expected: bool) -> None:
    mount = Mount(watches=True)
    mount.known(Tree({b"d": None}))
    node = mkdir(mount, NEW, listing, first=first)
    assert is_known_to_be_empty(mount, node) is expected


def test_a_name_that_is_looked_up_meanwhile_waits_for_the_listing() -> None:
    mount = Mount(watches=True)
    mount.known(Tree({}))
    number = mount.ask(op.Mkdir(ROOT, b"made", 0o755, 0))
    asked = {frame.operation: frame.id for frame in mount.sent}
    mount.reply(asked["mkdir"], NEW)
    made = mount.answer(number)
    assert isinstance(made, op.Entry)
    looked = mount.ask(op.Lookup(made.node, b"x"))
    mount.reply(asked["gather"], LISTING)
    assert mount.answer(looked) == op.Entry(0, None, 1.0)
    assert [frame.operation for frame in mount.sent if frame.id > asked["mkdir"]] == []


def test_what_others_put_into_it_meanwhile_is_seen() -> None:
    mount = Mount(watches=True)
    mount.known(Tree({}))
    number = mount.ask(op.Mkdir(ROOT, b"made", 0o755, 0))
    asked = {frame.operation: frame.id for frame in mount.sent}
    mount.reply(asked["mkdir"], NEW)
    mount.notice(b"made", b"made/x", attributes=(msgspec.structs.replace(NEW, mtime=9), attributes(57)))
    mount.reply(asked["gather"], LISTING)
    made = mount.answer(number)
    assert isinstance(made, op.Entry)
    looked = mount.ask(op.Lookup(made.node, b"x"))
    assert mount.answers(looked) == [], "it is looked for"


def test_one_that_could_not_be_made_is_not_known() -> None:
    mount = Mount(watches=True)
    mount.known(Tree({}))
    number = mount.ask(op.Mkdir(ROOT, b"made", 0o755, 0))
    asked = {frame.operation: frame.id for frame in mount.sent}
    mount.reply(asked["mkdir"], Errno("EEXIST"))
    mount.reply(asked["gather"], LISTING)
    assert isinstance(mount.answer(number), op.Failed)
    assert mount.t.cache.names(b"made", mount.now) is None


@pytest.mark.parametrize("why", ["unlisted", "full", "unwatched", "may-not-be-listed"])
def test_it_is_not_asked_for_where_that_is_of_no_use(why: str) -> None:
    denied = [Rule(path, allow=ALL, deny=READ) for path in ("/made/**", "/made") if why == "may-not-be-listed"]
    rules = (*denied, *EVERYTHING)
    mount = Mount(rules, watches=True)
    if why != "unlisted":
        mount.known(Tree({}))
    if why == "full":
        mount.t.session._in_flight = mount.t.limits.max_in_flight
    if why == "unwatched":
        mount.t.unwatched[b"made"] = mount.now + 1
    mount.ask(op.Mkdir(ROOT, b"made", 0o755, 0))
    assert "gather" not in [frame.operation for frame in mount.sent]


def test_a_directory_that_is_given_to_whom_it_belongs_is_as_it_was() -> None:
    mount = Mount(watches=True)
    mount.known(Tree({}))
    node = mkdir(mount, NEW, LISTING)
    answer = mount.answer(mount.ask(op.Setattr(node, uid=1000, gid=1001)))
    assert isinstance(answer, op.Attr)
    assert mount.sent == []
    number = mount.ask(op.Setattr(node, uid=1000, mode=0o700))
    assert [frame.operation for frame in mount.sent] == ["setattr"]
    assert not mount.answers(number)
