"""tree/inodes.py: a node is one name, and no node ever has a path that is another file's."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from fuse_gated.operations import ROOT, Attributes
from fuse_gated.paths import is_beneath, join
from fuse_gated.tree.inodes import Inodes, identity_of

REGULAR, DIRECTORY = 0o100000, 0o040000


def attributes(inode, kind=REGULAR, nlink=1):
    return Attributes(7, inode, kind | 0o644, nlink, 500, 501, 0, 5, 8, 4096, 1, 2, 3)


@pytest.fixture
def inodes():
    return Inodes()


def make(inodes, path, kind=REGULAR, inode=None, nlink=1):
    """The node of a path, with directories above it as needed."""
    parent = inodes.root
    *above, name = path.split(b"/")
    for directory in above:
        parent = parent.children.get(directory) or inodes.known(parent, directory, attributes(1000 + len(inodes), DIRECTORY))
    return inodes.known(parent, name, attributes(inode or 100 + len(inodes), kind, nlink))


# Names and numbers.


def test_the_root_is_number_one_and_has_no_path(inodes):
    assert inodes.get(ROOT) is inodes.root
    assert inodes.path(inodes.root) == b""
    assert not inodes.gone(inodes.root)
    assert list(inodes) == [inodes.root]


def test_a_name_gets_a_number_that_was_never_used_before(inodes):
    first = make(inodes, b"a")
    assert first.id == inodes.newest - 1 > ROOT
    inodes.forget(first.id, 1)
    second = make(inodes, b"a", inode=100)
    assert second.id != first.id
    assert inodes.get(first.id) is None


def test_the_same_file_of_the_same_name_is_the_same_node_and_counted(inodes):
    node = make(inodes, b"a", inode=5)
    assert inodes.known(inodes.root, b"a", attributes(5)) is node
    assert node.lookups == 2


@pytest.mark.parametrize("changed", [{"inode": 6}, {"device": 8}, {"mode": DIRECTORY | 0o755}])
def test_another_file_of_the_same_name_is_another_node(inodes, changed):
    old = make(inodes, b"a", inode=5)
    new = inodes.known(inodes.root, b"a", msgspec.structs.replace(attributes(5), **changed))
    assert new.id != old.id
    assert inodes.root.children[b"a"] is new
    assert (inodes.gone(old), inodes.gone(new)) == ("ESTALE", "")


def test_what_is_no_identity_may_change(inodes):
    node = make(inodes, b"a", inode=5)
    changed = msgspec.structs.replace(attributes(5), mode=REGULAR | 0o700, nlink=1, size=10**9, uid=0)
    assert inodes.known(inodes.root, b"a", changed) is node


def test_another_file_in_the_place_of_one_that_nobody_needs_keeps_its_directory(inodes):
    directory = make(inodes, b"d", DIRECTORY)
    old = inodes.known(directory, b"a", attributes(5))
    old.lookups = 0
    inodes.forget(directory.id, 1)
    new = inodes.known(directory, b"a", attributes(6))
    assert inodes.get(old.id) is None
    assert inodes.get(directory.id) is directory
    assert inodes.path(new) == b"d/a"


# Forgetting.


def test_a_node_stays_until_every_lookup_is_forgotten(inodes):
    node = make(inodes, b"a", inode=5)
    inodes.known(inodes.root, b"a", attributes(5))
    inodes.forget(node.id, 1)
    assert inodes.get(node.id) is node
    inodes.forget(node.id, 1)
    assert inodes.get(node.id) is None
    assert inodes.root.children == {}


def test_forgetting_more_than_was_counted_drops_the_node(inodes):
    node = make(inodes, b"a")
    inodes.forget(node.id, 2**64 - 1)
    assert inodes.get(node.id) is None


def test_forgetting_what_is_not_known_or_the_root_does_nothing(inodes):
    inodes.forget(ROOT, 5)
    inodes.forget(999, 5)
    assert list(inodes) == [inodes.root]


def test_a_directory_stays_for_its_children_and_goes_with_the_last(inodes):
    child = make(inodes, b"d/e/a")
    e, d = child.parent, child.parent.parent
    inodes.forget(d.id, 1)
    inodes.forget(e.id, 1)
    assert len(inodes) == 4
    inodes.forget(child.id, 1)
    assert list(inodes) == [inodes.root]


def test_a_node_stays_for_what_is_open_on_it(inodes):
    node = make(inodes, b"a")
    node.handles.append(1)
    inodes.forget(node.id, 1)
    assert inodes.get(node.id) is node
    node.handles.clear()
    inodes.collect(node)
    inodes.collect(node)
    assert inodes.get(node.id) is None


# Losing a name.


def test_what_was_removed_is_gone_and_keeps_its_last_path(inodes):
    node = make(inodes, b"d/a")
    inodes.removed(node)
    assert (inodes.path(node), inodes.gone(node)) == (b"d/a", "ENOENT")
    assert node.parent.children == {}
    assert inodes.get(node.id) is node, "the kernel still knows it"
    again = inodes.known(node.parent, b"a", attributes(300))
    assert (inodes.path(again), inodes.gone(again)) == (b"d/a", "")
    inodes.removed(node)
    assert node.parent.children[b"a"] is again


def test_what_is_beneath_a_removed_directory_is_gone_too(inodes):
    child = make(inodes, b"d/e/a")
    assert not inodes.gone(child)
    inodes.removed(child.parent.parent)
    assert inodes.gone(child)
    assert inodes.gone(child.parent)


def test_what_was_removed_and_forgotten_is_dropped(inodes):
    node = make(inodes, b"a")
    node.lookups = 0
    inodes.removed(node)
    assert inodes.get(node.id) is None


# Renaming.


def test_a_renamed_node_moves_with_everything_beneath_it(inodes):
    child, other = make(inodes, b"d/e/a"), make(inodes, b"x", DIRECTORY)
    d = child.parent.parent
    assert inodes.path(child) == b"d/e/a"
    inodes.renamed(inodes.root, b"d", other, b"n", exchange=False)
    assert inodes.path(child) == b"x/n/e/a"
    assert d.parent is other
    assert b"d" not in inodes.root.children


def test_what_is_replaced_is_gone(inodes):
    a, b = make(inodes, b"a"), make(inodes, b"b")
    inodes.renamed(inodes.root, b"a", inodes.root, b"b", exchange=False)
    assert (inodes.path(a), inodes.gone(a)) == (b"b", "")
    assert inodes.gone(b) == "ESTALE"
    assert inodes.root.children == {b"b": a}


def test_what_is_replaced_and_nobody_needs_is_dropped(inodes):
    make(inodes, b"a")
    b = make(inodes, b"b")
    b.lookups = 0
    inodes.renamed(inodes.root, b"a", inodes.root, b"b", exchange=False)
    assert inodes.get(b.id) is None


def test_exchanged_nodes_change_places(inodes):
    a, b = make(inodes, b"d/a"), make(inodes, b"e/b")
    inodes.renamed(a.parent, b"a", b.parent, b"b", exchange=True)
    assert (inodes.path(a), inodes.path(b)) == (b"e/b", b"d/a")
    assert not inodes.gone(a)
    assert not inodes.gone(b)


@pytest.mark.parametrize("exchange", [False, True])
def test_a_rename_of_what_is_not_known_takes_away_what_was_known_at_its_new_name(inodes, exchange):
    b = make(inodes, b"b")
    inodes.renamed(inodes.root, b"a", inodes.root, b"b", exchange=exchange)
    assert inodes.gone(b) == ("" if exchange else "ESTALE")
    assert inodes.root.children == ({b"a": b} if exchange else {})


def test_an_exchange_with_what_is_not_known_moves_the_other(inodes):
    a = make(inodes, b"a")
    inodes.renamed(inodes.root, b"a", inodes.root, b"b", exchange=True)
    assert (inodes.path(a), inodes.root.children) == (b"b", {b"b": a})


@pytest.mark.parametrize("exchange", [False, True])
def test_a_rename_to_itself_changes_nothing(inodes, exchange):
    a = make(inodes, b"a")
    inodes.renamed(inodes.root, b"a", inodes.root, b"a", exchange=exchange)
    assert (inodes.path(a), inodes.gone(a)) == (b"a", "")


def test_a_directory_that_a_rename_left_empty_and_nobody_needs_is_dropped(inodes):
    child, other = make(inodes, b"d/a"), make(inodes, b"x", DIRECTORY)
    d = child.parent
    inodes.forget(d.id, 1)
    inodes.renamed(d, b"a", other, b"a", exchange=False)
    assert inodes.get(d.id) is None
    assert inodes.path(child) == b"x/a"


def test_so_is_the_other_one_where_an_exchange_left_it_empty(inodes):
    child = make(inodes, b"d/b")
    d = child.parent
    inodes.forget(d.id, 1)
    inodes.renamed(inodes.root, b"unknown", d, b"b", exchange=True)
    assert inodes.get(d.id) is None
    assert inodes.path(child) == b"unknown"


# Deep trees.


def test_directories_may_be_nested_deeper_than_any_stack(inodes):
    node = inodes.root
    for number in range(5000):
        node = inodes.known(node, b"n%d" % (number % 10), attributes(number + 10, DIRECTORY))
    other = make(inodes, b"x", DIRECTORY)
    path = inodes.path(node)
    assert path.count(b"/") == 4999
    inodes.renamed(inodes.root, b"n0", other, b"m", exchange=False)
    assert inodes.path(node) == b"x/m" + path[2:]
    assert not inodes.gone(node)
    inodes.removed(other)
    assert inodes.gone(node)
    assert inodes.path(node) == b"x/m" + path[2:]


def test_long_paths_are_not_all_remembered(inodes):
    node = inodes.root
    chain = []
    for number in range(200):
        node = inodes.known(node, b"%0200d" % number, attributes(number + 10, DIRECTORY))
        chain.append(node)
        assert len(inodes.path(node)) == 201 * (number + 1) - 1
    assert 0 < sum(len(node._path) for node in chain) < 200 * 1024


# Hard links.


def test_names_of_one_file_are_siblings(inodes):
    a, b, c = (make(inodes, name, inode=5, nlink=3) for name in (b"a", b"b", b"d/c"))
    assert inodes.siblings(a) == [b.id, c.id]
    assert inodes.siblings(c) == [a.id, b.id]
    assert len({a.id, b.id, c.id}) == 3


def test_a_file_with_one_name_and_a_directory_have_no_siblings(inodes):
    assert inodes.siblings(make(inodes, b"a", inode=5)) == []
    assert inodes.siblings(make(inodes, b"d", DIRECTORY, inode=6, nlink=5)) == []
    assert inodes.siblings(inodes.root) == []


def test_a_name_that_turns_out_to_be_one_of_several_becomes_a_sibling(inodes):
    a, b = make(inodes, b"a", inode=5, nlink=1), make(inodes, b"b", inode=5, nlink=2)
    assert inodes.siblings(b) == []
    inodes.has_links(a, attributes(5, nlink=2))
    assert (inodes.siblings(a), inodes.siblings(b)) == ([b.id], [a.id])


def test_a_name_that_is_dropped_is_no_sibling_any_more(inodes):
    a, b, c = (make(inodes, name, inode=5, nlink=3) for name in (b"a", b"b", b"c"))
    inodes.forget(c.id, 1)
    assert inodes.siblings(a) == [b.id]
    inodes.forget(b.id, 1)
    assert inodes.siblings(a) == []
    inodes.forget(a.id, 1)
    assert inodes.siblings(a) == []


# What to ask the kernel to forget.


def test_the_longest_known_leaves_are_offered_first_and_not_again_until_the_others_were(inodes):
    for name in (b"a", b"b", b"c"):
        make(inodes, name)
    a, b, c = (ROOT, b"a"), (ROOT, b"b"), (ROOT, b"c")
    assert inodes.oldest(2) == [a, b]
    assert inodes.oldest(2) == [c, a]
    assert inodes.oldest(10) == [b, c, a]


def test_directories_with_children_open_files_and_what_is_gone_are_not_offered(inodes):
    child, opened, gone = make(inodes, b"d/a"), make(inodes, b"o"), make(inodes, b"g")
    opened.handles.append(1)
    inodes.removed(gone)
    assert inodes.oldest(10) == [(child.parent.id, b"a")]


# Against a model.

NAMES = [b"a", b"b", b"c"]


class Model(RuleBasedStateMachine):
    """A file system of dictionaries beside the nodes: what is renamed and removed there, and looked up here."""

    nodes = Bundle("nodes")

    @initialize(target=nodes)
    def begin(self):
        self.inodes = Inodes()
        self.tree = {b"": 1}
        """path -> inode number of what the client has there; directories are those below 1000."""
        self.serial = 1
        self.seen = {ROOT: (b"", 1)}
        """node -> (where the model says it is, which file); a path of None says that it is gone."""
        self.lookups = {}
        self.opened = {}
        return ROOT

    def path(self, number):
        return self.seen[number][0] if number in self.seen else None

    def is_live_directory(self, number):
        return self.path(number) is not None and self.tree.get(self.path(number), 9999) < 1000

    def lose(self, path):
        for number, (place, file) in list(self.seen.items()):
            if place is not None and is_beneath(place, path):
                self.seen[number] = (None, file)

    @rule(parent=nodes, name=st.sampled_from(NAMES), directory=st.booleans())
    def make_on_client(self, parent, name, directory):
        if self.is_live_directory(parent):
            path = join(self.path(parent), name)
            if path not in self.tree:
                self.serial += 1
                self.tree[path] = self.serial if directory else 1000 + self.serial

    @rule(parent=nodes, name=st.sampled_from(NAMES))
    def replace_on_client(self, parent, name):
        """The client's own programs put another file there, unknown to us until it is looked up."""
        if self.is_live_directory(parent):
            path = join(self.path(parent), name)
            if self.tree.get(path, 0) >= 1000:
                self.serial += 1
                self.tree[path] = 1000 + self.serial

    @rule(target=nodes, parent=nodes, name=st.sampled_from(NAMES))
    def lookup(self, parent, name):
        if not self.is_live_directory(parent):
            return multiple()
        path = join(self.path(parent), name)
        if path not in self.tree:
            return multiple()
        file = self.tree[path]
        if (path, file) not in self.seen.values():
            self.lose(path)
        node = self.inodes.known(self.inodes.get(parent), name, attributes(file, DIRECTORY if file < 1000 else REGULAR))
        assert self.seen.get(node.id, (path, file)) == (path, file)
        self.seen[node.id] = (path, file)
        self.lookups[node.id] = self.lookups.get(node.id, 0) + 1
        return node.id

    @rule(number=nodes, count=st.integers(1, 3))
    def forget(self, number, count):
        if number == ROOT:
            return
        self.inodes.forget(number, count)
        self.lookups[number] = max(0, self.lookups.get(number, 0) - count)

    @rule(number=nodes)
    def open(self, number):
        node = self.inodes.get(number)
        if node is not None and number in self.seen:
            node.handles.append(1)
            self.opened[number] = self.opened.get(number, 0) + 1

    @rule(number=nodes)
    def close(self, number):
        if self.opened.get(number):
            self.opened[number] -= 1
            node = self.inodes.get(number)
            node.handles.remove(1)
            self.inodes.collect(node)

    @rule(parent=nodes, name=st.sampled_from(NAMES))
    def remove(self, parent, name):
        if not self.is_live_directory(parent):
            return
        path = join(self.path(parent), name)
        if path not in self.tree or any(other != path and is_beneath(other, path) for other in self.tree):
            return
        del self.tree[path]
        self.lose(path)
        node = self.inodes.get(parent).children.get(name)
        if node is not None:
            self.inodes.removed(node)

    @rule(parent=nodes, name=st.sampled_from(NAMES), to=nodes, new=st.sampled_from(NAMES), exchange=st.booleans())
    def rename(self, parent, name, to, new, exchange):
        if not (self.is_live_directory(parent) and self.is_live_directory(to)):
            return
        old_path, new_path = join(self.path(parent), name), join(self.path(to), new)
        if old_path not in self.tree or is_beneath(new_path, old_path) or is_beneath(old_path, new_path):
            return
        beneath = [path for path in self.tree if path != new_path and is_beneath(path, new_path)]
        if (exchange and new_path not in self.tree) or (not exchange and beneath):
            return
        directories = {self.tree[path] < 1000 for path in (old_path, new_path) if path in self.tree}
        if not exchange and len(directories) == 2:
            return
        if not exchange:
            self.lose(new_path)

        def moved(path):
            if path is None:
                return None
            if is_beneath(path, old_path):
                return new_path + path[len(old_path) :]
            return old_path + path[len(new_path) :] if exchange and is_beneath(path, new_path) else path

        kept = {path: file for path, file in self.tree.items() if exchange or path != new_path}
        self.tree = {moved(path): file for path, file in kept.items()}
        self.seen = {number: (moved(path), file) for number, (path, file) in self.seen.items()}
        self.inodes.renamed(self.inodes.get(parent), name, self.inodes.get(to), new, exchange=exchange)

    @invariant()
    def nodes_and_model_agree(self):
        self.what_nobody_needs_is_dropped_and_nothing_else()
        self.a_node_has_the_path_of_its_file_or_gone()
        self.no_two_nodes_that_are_not_gone_have_one_path()
        self.children_and_parents_agree()

    def what_nobody_needs_is_dropped_and_nothing_else(self):
        for number in list(self.seen):
            if self.inodes.get(number) is None:
                assert not self.lookups.get(number)
                assert not self.opened.get(number)
                assert number != ROOT
                del self.seen[number]
        for node in self.inodes:
            assert node.id in self.seen
            assert node.id == ROOT or self.lookups[node.id] or node.handles or node.children

    def a_node_has_the_path_of_its_file_or_gone(self):
        for number, (path, file) in self.seen.items():
            node = self.inodes.get(number)
            assert bool(self.inodes.gone(node)) == (path is None), (number, path)
            if path is not None:
                assert self.inodes.path(node) == path
                assert number == ROOT or node.identity == identity_of(attributes(file, DIRECTORY if file < 1000 else REGULAR))

    def no_two_nodes_that_are_not_gone_have_one_path(self):
        paths = [self.inodes.path(node) for node in self.inodes if not self.inodes.gone(node)]
        assert len(set(paths)) == len(paths)

    def children_and_parents_agree(self):
        for node in self.inodes:
            for name, child in node.children.items():
                assert (child.parent, child.name, child.lost) == (node, name, "")
                assert self.inodes.get(child.id) is child


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_names_of_one_file_are_siblings_once_that_is_seen(inodes):
    a = make(inodes, b"a", inode=5)
    make(inodes, b"b", inode=5, nlink=2)
    assert inodes.siblings(a) == [inodes.find(b"b").id]
    assert make(inodes, b"a", inode=5, nlink=2) is a
    assert inodes.is_linked(a)
    before = set(inodes.changed)
    inodes.has_links(a, attributes(5, nlink=3))
    assert set(inodes.changed) == before, "that is known"


def test_where_a_node_is(inodes):
    a = make(inodes, b"a", inode=5)
    for _ in range(2):
        assert inodes.where(a) == (b"a", "")
    inodes.removed(a)
    assert inodes.where(a) == (b"a", "ENOENT")
