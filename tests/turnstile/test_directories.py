"""turnstile/directories.py: listings page by page, without what the gate hides."""

import pytest
from harness.sansio import DIRECTORY, EVERYTHING, REGULAR, ROOT, Errno, Mount, Tree, attributes
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError, errno_name
from fuse_gated.gate.verdict import ALL, READ, WRITE, Rule
from fuse_gated.operations import Listing
from fuse_gated.turnstile.listing import MOST_PAGES
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Listed, ListedEntry, OpenedFile

PAGE = 1024


def failed(answer):
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


class Client:
    """A client with one directory, and a mount that lists it as a kernel does."""

    def __init__(self, names, rules=EVERYTHING, **options):
        self.names = list(names)
        self.mount = Mount(rules, **options)
        self.node = self.mount.lookup(b"d", DIRECTORY, inode=500)
        self.handle = self.mount.opendir(self.node)
        self.mount.clear()

    def entry(self, number, plus):
        kind = DIRECTORY if self.names[number].startswith(b"dir") else REGULAR
        return ListedEntry(self.names[number], 1000 + number, kind, attributes(1000 + number, kind) if plus else None)

    def read(self, offset=0, size=4096, plus=False, at=0):
        """One READDIR, for which the client is asked as often as needed."""
        number = self.mount.ask(op.Readdir(self.node if at == 0 else at, self.handle, offset, size, plus))
        while not self.mount.answers(number):
            asked = self.mount.arguments
            assert (asked.handle, asked.count, asked.attributes) == (88, PAGE, plus)
            page = range(asked.cookie, min(asked.cookie + PAGE, len(self.names)))
            listed = tuple(self.entry(at, plus) for at in page)
            self.mount.reply(number, Listed(listed, asked.cookie + PAGE >= len(self.names)))
        return self.mount.answer(number)

    def whole(self, size=4096, plus=False):
        """Every entry, from offset to offset."""
        entries = []
        while True:
            answer = self.read(entries[-1].offset if entries else 0, size, plus)
            assert isinstance(answer, Listing)
            assert answer.plus is plus
            assert packed(answer) <= size
            if not answer.entries:
                return entries
            entries += answer.entries


def packed(listing):
    fixed = 152 if listing.plus else 24
    return sum(fixed + len(entry.name) + 7 & ~7 for entry in listing.entries)


def names(entries):
    return [entry.name for entry in entries]


# Opening.


def test_another_directory_at_the_same_path_is_stale_and_given_back():
    mount = Mount()
    node = mount.lookup(b"d", DIRECTORY, inode=500)
    mount.clear()
    assert failed(mount.do(op.Opendir(node, 0), OpenedFile(88, attributes(501, DIRECTORY)))) == "ESTALE"
    assert mount.story == ["send opendir", "send releasedir", "answer ESTALE"]
    assert mount.arguments == messages.Releasedir(88)


def test_a_directory_that_may_not_be_read_is_opened_for_the_sake_of_what_lies_beneath():
    mount = Mount([Rule("/a/b/f", allow=READ), Rule("/w/**", allow=WRITE)])
    a, w = mount.lookup(b"a", DIRECTORY), mount.lookup(b"w", DIRECTORY)
    assert mount.opendir(a)
    assert failed(mount.do(op.Opendir(w, 0))) == "EACCES"


def test_a_directory_that_lost_its_name_is_not_opened():
    mount = Mount()
    node = mount.lookup(b"d", DIRECTORY)
    mount.do(op.Rmdir(ROOT, b"d"), None)
    assert failed(mount.do(op.Opendir(node, 0))) == "ENOENT"


# Listing.


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, PAGE, PAGE + 1, 3 * PAGE])
def test_every_name_is_listed_once_in_order(count, plus):
    client = Client(b"n%d" % number for number in range(count))
    entries = client.whole(plus=plus)
    assert names(entries) == [b".", b"..", *client.names]
    assert [entry.offset for entry in entries] == list(range(1, count + 3))
    assert [entry.inode for entry in entries[2:]] == [1000 + number for number in range(count)]
    assert [entry.inode for entry in entries[:2]] == [500, 1]


def test_a_page_is_asked_for_once_and_an_end_is_looked_for_once():
    client = Client(b"n%d" % number for number in range(2 * PAGE))
    client.whole()
    assert [frame.arguments.cookie for frame in client.mount.sent] == [0, PAGE, 2 * PAGE]


def kept(client):
    """Handles whose page is kept, though all of them are open."""
    return [handle.id for handle in client.mount.t.handles if handle.page]


def test_pages_are_kept_of_so_many_open_directories_and_no_more():
    """A page may take a megabyte, and a program can have hundreds of thousands of directories open."""
    client = Client([b"a"])
    first = client.handle
    client.read()
    for _ in range(MOST_PAGES - 1):
        client.handle = client.mount.opendir(client.node)
        client.read()
    assert len(kept(client)) == MOST_PAGES
    client.handle = client.mount.opendir(client.node)
    client.read()
    assert len(kept(client)) == MOST_PAGES
    assert first not in kept(client)


def test_a_page_that_was_given_up_is_asked_for_again():
    client = Client(b"n%d" % number for number in range(PAGE))
    found = list(client.read(size=1024).entries)
    first = client.handle
    for _ in range(MOST_PAGES):
        client.handle = client.mount.opendir(client.node)
        client.read()
    client.handle = first
    while more := client.read(found[-1].offset).entries:
        found += more
    assert names(found) == [b".", b"..", *client.names]


def test_a_directory_that_is_closed_or_ends_keeps_no_page():
    client = Client([b"a"])
    client.whole()
    assert client.mount.t.pages == {}
    client.read()
    assert list(client.mount.t.pages) == [client.handle]
    client.mount.ask(op.Releasedir(client.node, client.handle))
    assert client.mount.t.pages == {}


def test_the_dots_of_the_root_are_both_the_root():
    mount = Mount()
    handle = mount.opendir(ROOT)
    answer = mount.do(op.Readdir(ROOT, handle, 0, 4096, False), Listed((), True))
    assert [(entry.name, entry.inode, entry.type) for entry in answer.entries] == [(b".", 1, DIRECTORY), (b"..", 1, DIRECTORY)]


def test_a_directory_on_another_filesystem_shows_the_same_number_as_a_dot_and_by_stat():
    mount = Mount()
    entry = mount.do(op.Lookup(ROOT, b"d"), attributes(500, DIRECTORY, device=8))
    handle = mount.do(op.Opendir(entry.node, 0), OpenedFile(88, attributes(500, DIRECTORY, device=8))).handle
    answer = mount.do(op.Readdir(entry.node, handle, 0, 4096, False), Listed((), True))
    assert answer.entries[0].inode == entry.attributes.inode


def test_reading_from_the_start_reads_anew():
    client = Client([b"a", b"b"])
    assert names(client.whole()) == [b".", b"..", b"a", b"b"]
    client.names = [b"c"]
    assert names(client.whole()) == [b".", b"..", b"c"]


@pytest.mark.parametrize("offset", [10**7 + 1, 2**63 - 1, 2**64 - 1])
def test_a_position_that_no_listing_has_is_the_programs_fault_and_not_the_clients(offset):
    client = Client([b"a"])
    assert failed(client.mount.do(op.Readdir(client.node, client.handle, offset, 4096, False))) == "EOVERFLOW"
    assert client.mount.sent == []


def test_a_position_beyond_the_end_lists_nothing():
    assert Client([b"a"]).read(offset=50).entries == ()


def test_a_listing_without_room_for_one_name_is_refused():
    client = Client([b"n" * 200])
    assert failed(client.read(offset=2, size=100)) == "EINVAL"
    assert names(client.read(offset=0, size=100).entries) == [b".", b".."]
    assert names(client.read(offset=2, size=224).entries) == [b"n" * 200]


def test_a_failure_of_the_client_is_the_callers():
    client = Client([b"a"])
    assert failed(client.mount.do(op.Readdir(client.node, client.handle, 0, 4096, False), Errno("EIO"))) == "EIO"


# What is hidden.


HIDING = [Rule("/d/.*", hide=True), Rule("/d/dir-denied/**", deny=ALL), Rule("/**", allow=READ)]


@pytest.mark.parametrize("plus", [False, True])
def test_hidden_names_are_never_listed_and_denied_ones_have_no_attributes(plus):
    client = Client([b".env", b"a", b"dir-denied", b".git"], HIDING)
    entries = client.whole(plus=plus)
    assert names(entries) == [b".", b"..", b"a", b"dir-denied"]
    assert [entry.entry is not None for entry in entries] == [False, False, plus, False]
    for hidden in (b".env", b".git", b"dir-denied"):
        assert hidden not in client.mount.t.inodes.get(client.node).children


def test_a_page_of_hidden_names_is_not_the_end():
    client = Client([b".%d" % number for number in range(3 * PAGE + 5)] + [b"last"], HIDING)
    assert names(client.read(offset=2).entries) == [b"last"]
    assert [frame.arguments.cookie for frame in client.mount.sent] == [0, PAGE, 2 * PAGE, 3 * PAGE]
    assert client.read(offset=client.read(offset=2).entries[-1].offset).entries == ()


def test_only_the_ways_to_what_is_visible_are_listed():
    client = Client([b"way", b"other"], [Rule("/d/way/f", allow=READ)])
    assert names(client.whole()) == [b".", b"..", b"way"]


def test_an_interrupted_listing_ends_although_everything_is_hidden():
    client = Client([b".%d" % number for number in range(3 * PAGE)], HIDING)
    mount = client.mount
    number = mount.ask(op.Readdir(client.node, client.handle, 2, 4096, False))
    mount.interrupt(number)
    mount.tick(0.4)
    mount.reply(number, Listed(tuple(client.entry(at, False) for at in range(PAGE)), False))
    assert mount.answers(number) == []
    mount.now += 0.2
    mount.reply(number, Listed(tuple(client.entry(at, False) for at in range(PAGE, 2 * PAGE)), False))
    assert failed(mount.answer(number)) == "EINTR"


def test_a_listing_has_one_deadline_however_many_pages_it_takes():
    client = Client([b".%d" % number for number in range(5 * PAGE)], HIDING)
    mount = client.mount
    number = mount.ask(op.Readdir(client.node, client.handle, 2, 4096, False))
    for page in range(3):
        mount.tick(9)
        mount.reply(number, Listed(tuple(client.entry(at, False) for at in range(page * PAGE, (page + 1) * PAGE)), False))
    assert mount.answers(number) == []
    mount.tick(4)
    assert failed(mount.answer(number)) == "ETIMEDOUT"


def test_a_directory_of_nothing_but_hidden_names_without_end_is_a_fault_of_the_client():
    client = Client([], HIDING)
    mount = client.mount
    number = mount.ask(op.Readdir(client.node, client.handle, 10**7, 4096, False))
    page = tuple(ListedEntry(b".%d" % at, 5, REGULAR) for at in range(PAGE))
    with pytest.raises(ProtocolError, match="more than 10000000 entries"):
        mount.reply(number, Listed(page, False))


def test_what_was_judged_before_the_policy_changed_is_judged_again_although_it_was_opened_after():
    mount = Mount()
    node = mount.lookup(b"d", DIRECTORY, inode=500)
    number = mount.ask(op.Opendir(node, 0))
    mount.apply([])
    mount.reply(number, OpenedFile(88, attributes(500, DIRECTORY)))
    assert failed(mount.do(op.Readdir(node, mount.answer(number).handle, 0, 4096, False))) == "EACCES"


def test_a_policy_that_changes_hides_what_was_already_received():
    client = Client([b"a", b"b", b"c"])
    assert names(client.read(size=4096).entries) == [b".", b"..", b"a", b"b", b"c"]
    client.mount.apply([Rule("/d/b", hide=True), *EVERYTHING])
    client.mount.clear()
    assert names(client.read(offset=3).entries) == [b"c"]
    assert client.mount.sent == [], "from the page at hand"
    client.mount.apply([Rule("/d/**", deny=ALL)])
    assert failed(client.read(offset=3)) == "EACCES"
    assert client.mount.records[-1].kind == "refused"
    client.mount.apply(EVERYTHING)
    assert names(client.read(offset=3).entries) == [b"b", b"c"]


# READDIRPLUS.


def test_a_listed_name_is_looked_up_with_that():
    client = Client([b"a", b"dir"])
    _, _, a, directory = client.whole(plus=True)
    node = client.mount.t.inodes.get(a.entry.node)
    assert (client.mount.t.inodes.path(node), node.lookups) == (b"d/a", 1)
    assert a.entry.attributes.inode == a.inode == 1000
    assert (a.type, directory.type) == (REGULAR, DIRECTORY)
    client.whole(plus=True)
    assert node.lookups == 2


def test_a_name_on_another_filesystem_is_listed_with_the_number_that_stat_shows():
    client = Client([b"a"])
    number = client.mount.ask(op.Readdir(client.node, client.handle, 2, 4096, True))
    client.mount.reply(number, Listed((ListedEntry(b"a", 1000, REGULAR, attributes(1000, device=8)),), True))
    (listed,) = client.mount.answer(number).entries
    assert listed.inode == listed.entry.attributes.inode != 1000


def test_what_did_not_fit_was_not_looked_up():
    client = Client([b"a", b"b", b"c"])
    answer = client.read(plus=True, size=4 * 160)
    assert names(answer.entries) == [b".", b"..", b"a", b"b"]
    assert set(client.mount.t.inodes.get(client.node).children) == {b"a", b"b"}


def test_a_page_that_is_older_than_a_replaced_file_does_not_take_the_new_one_away():
    client = Client([b"a", b"b"])
    client.read(plus=True, size=3 * 160)
    mount = client.mount
    made = mount.do(op.Create(client.node, b"b", 2, 0o644, 0), OpenedFile(90, attributes(7777)))
    (listed,) = client.read(offset=3, plus=True).entries
    assert (listed.name, listed.entry) == (b"b", None)
    assert not mount.t.inodes.gone(mount.t.inodes.get(made.entry.node))


def test_entries_without_attributes_are_left_to_be_looked_up():
    client = Client([b"a"])
    number = client.mount.ask(op.Readdir(client.node, client.handle, 0, 4096, True))
    client.mount.reply(number, Listed((ListedEntry(b"a", 1000, REGULAR),), True))
    assert client.mount.answer(number).entries[-1].entry is None


def test_a_driver_without_nodes_gets_the_attributes_alone():
    client = Client([b"a"])
    client.mount.apply(EVERYTHING)
    answer = client.read(plus=True, at=b"d")
    assert (answer.entries[-1].entry.node, answer.entries[-1].entry.attributes.inode) == (ROOT, 1000)


# Whatever is hidden, from wherever it is read, with whatever room.


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b"", b".", b"dir-"]), max_size=2500),
    st.integers(160 * 3, 40_000),
    st.booleans(),
    st.integers(0, 2600),
)
def test_a_listing_goes_on_correctly_from_any_offset(prefixes, size, plus, offset):
    client = Client([prefix + b"%d" % at for at, prefix in enumerate(prefixes)], [Rule("/d/.*", hide=True), *EVERYTHING])
    expected = [b".", b"..", *client.names]
    shown = [(at + 1, name) for at, name in enumerate(expected) if at < 2 or not name.startswith(b".")]
    found, at = [], offset
    while answer := client.read(at, size, plus).entries:
        found += [(entry.offset, entry.name) for entry in answer]
        at = answer[-1].offset
        assert all(entry.entry is None or entry.entry.attributes.inode == 1000 + entry.offset - 3 for entry in answer)
    assert found == [pair for pair in shown if pair[0] > offset]


# Synchronising.


class Here:
    """A directory that is only open here."""

    def __init__(self):
        self.tree = Tree({b"d": None, b"d/f": b"text"})
        self.mount = Mount(watches=True)
        self.mount.known(self.tree)
        self.node = self.mount.walk(self.tree, b"d")
        self.handle = self.mount.see(self.tree, op.Opendir(self.node, 0)).handle
        self.mount.clear()

    def sync(self, result):
        """Asked by its path, the client answers so."""
        number = self.mount.ask(op.Fsyncdir(self.node, self.handle, True))
        assert self.mount.arguments == messages.Fsyncdir(0, True, b"d")
        self.mount.reply(number, result)
        return number

    def opened(self, number):
        """It is opened for that after all."""
        assert isinstance(self.mount.arguments, messages.Opendir)
        [(_, remote)] = [(each, self.tree.attributes(b"d").inode) for each in self.mount.serve(self.tree, messages.Opendir)]
        assert self.mount.arguments == messages.Fsyncdir(remote, True)
        self.mount.reply(number, None)
        assert self.mount.answer(number) == op.Done()


def test_what_is_only_open_here_is_not_opened_for_that():
    here = Here()
    assert here.mount.answer(here.sync(here.tree.attributes(b"d"))) == op.Done()
    assert [frame.operation for frame in here.mount.sent] == ["fsyncdir"]
    here.mount.do(op.Releasedir(here.node, here.handle))
    assert [frame.operation for frame in here.mount.sent] == ["fsyncdir"]


def test_that_the_disk_is_at_fault_is_told():
    here = Here()
    assert failed(here.mount.answer(here.sync(Errno("EIO")))) == "EIO"


@pytest.mark.parametrize("result", [None, attributes(4711, DIRECTORY), Errno("ENOENT"), Errno("ENOTDIR")])
def test_what_another_may_be_by_now_is_opened(result):
    here = Here()
    here.opened(here.sync(result))


def test_a_client_that_knows_no_such_way_is_not_asked_so_again():
    here = Here()
    here.opened(here.sync(Errno("EBADF")))
    handle = here.mount.see(here.tree, op.Opendir(here.node, 0)).handle
    here.mount.clear()
    number = here.mount.ask(op.Fsyncdir(here.node, handle, True))
    here.opened(number)


def test_what_no_directory_is_like_ends_the_session():
    with pytest.raises(ProtocolError):
        Here().sync(attributes(5, DIRECTORY, size=-1))


def test_what_is_open_there_or_gone_is_named_as_ever():
    mount = Mount()
    handle = mount.opendir(mount.lookup(b"d", DIRECTORY, inode=500))
    assert mount.do(op.Fsyncdir(2, handle, False), None) == op.Done()
    assert mount.arguments == messages.Fsyncdir(88, False)
    here = Here()
    here.mount.do(op.Lookup(ROOT, b"d"))
    here.mount.notice(b"d", attributes=(None,))
    here.mount.see(here.tree, op.Getattr(ROOT))
    here.mount.t.inodes.removed(here.mount.t.inodes.get(here.node))
    assert failed(here.mount.do(op.Fsyncdir(here.node, here.handle, False))) == "ESTALE"
