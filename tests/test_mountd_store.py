"""mountd_store.py: what is kept of the mounts, as a store sees it that is killed together with the keeper at any moment."""

import os
from collections.abc import Iterator

import pytest
from harness.leftovers import descriptors

from fuse_gated.edge.memory import make_state, write_memory
from fuse_gated.mountd_store import Kept, Label, NoStore, Shelf, is_kept


class Store:
    """Keeps copies, and can end at the moment of any step."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.left = 10**6

    def keep(self, name: str, descriptor: int) -> None:
        assert name not in self.kept
        self._step()
        self.kept[name] = os.dup(descriptor)

    def drop(self, name: str) -> None:
        self._step()
        os.close(self.kept.pop(name))

    def _step(self) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1

    def passed(self) -> dict[str, int]:
        """To the next keeper, in an order that nobody promised."""
        return {name: os.dup(kept) for name, kept in sorted(self.kept.items(), reverse=True)}

    def close(self) -> None:
        for kept in self.kept.values():
            os.close(kept)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    before = descriptors()
    yield made
    made.close()
    assert descriptors() == before


def add(shelf: Shelf, export: str = "web") -> Kept:
    return shelf.add(Label("acme", export, nosymfollow=export == "links"), os.open("/dev/null", os.O_RDONLY), make_state())


def recover(store: Store) -> list[Label]:
    """What the next keeper finds; it has let go of the rest."""
    shelf = Shelf(store)
    found, useless = shelf.recover(store.passed())
    shelf.discard(useless)
    assert len(store.kept) == 3 * len(found)
    for kept in found:
        kept.close()
    return [kept.label for kept in found]


def test_what_was_added_is_recovered_in_its_order(store: Store) -> None:
    shelf = Shelf(store)
    for count in range(12):
        add(shelf, f"e{count}").close()
    add(shelf, "links").close()
    labels = recover(store)
    assert [label.export for label in labels] == [*(f"e{count}" for count in range(12)), "links"]
    assert [label.nosymfollow for label in labels] == [False] * 12 + [True]


def test_numbers_go_on_where_they_were(store: Store) -> None:
    shelf = Shelf(store)
    add(shelf, "a").close()
    add(shelf, "b").close()
    next_shelf = Shelf(store)
    found, useless = next_shelf.recover(store.passed())
    assert useless == {}
    next_shelf.remove(found[0])
    add(next_shelf, "c").close()
    found[1].close()
    assert [label.export for label in recover(store)] == ["b", "c"]


def test_the_newest_note_is_recovered(store: Store) -> None:
    shelf = Shelf(store)
    kept = add(shelf)
    for note in (b"one", b"two", b"three", b""):
        shelf.note(kept, note)
        assert kept.label.note == note
        assert [label.note for label in recover(store)] == [note]
    shelf.remove(kept)
    assert store.kept == {}


@pytest.mark.parametrize(("step", "either"), [(0, [b"old"]), (1, [b"old", b"new"])])
def test_a_note_that_was_being_changed_is_the_old_one_or_the_new_one(store: Store, step: int, either: list[bytes]) -> None:
    shelf = Shelf(store)
    kept = add(shelf)
    shelf.note(kept, b"old")
    store.left = step
    with pytest.raises(KeyboardInterrupt):
        shelf.note(kept, b"new")
    store.left = 10**6
    (label,) = recover(store)
    assert label.note in either
    kept.close()


@pytest.mark.parametrize("step", range(3))
def test_what_was_not_kept_whole_is_let_go(store: Store, step: int) -> None:
    shelf = Shelf(store)
    store.left = step
    device, state = os.open("/dev/null", os.O_RDONLY), make_state()
    with pytest.raises(KeyboardInterrupt):
        shelf.add(Label("acme", "web", False), device, state)
    store.left = 10**6
    assert recover(store) == []
    assert store.kept == {}
    os.close(device)
    os.close(state)


def test_what_no_keeper_of_this_version_kept_is_let_go(store: Store) -> None:
    shelf = Shelf(store)
    add(shelf).close()
    garbage = write_memory("garbage", b"\xc1")
    for name in ("acme/web", "device 7", "state 7", "label-a 7", "device x", "state 8"):
        store.keep(name, garbage)
    os.close(garbage)
    assert [label.export for label in recover(store)] == ["web"]


def test_a_note_for_which_there_is_no_memory_leaves_the_old_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(store)
    kept = add(shelf)
    shelf.note(kept, b"old")

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", refuse)
        with pytest.raises(OSError, match="Too many"):
            shelf.note(kept, b"new")
    assert kept.label.note == b"old"
    shelf.note(kept, b"newest")
    assert [label.note for label in recover(store)] == [b"newest"]
    kept.close()


def test_where_nothing_is_kept_all_the_same_is_done() -> None:
    shelf = Shelf(NoStore())
    kept = add(shelf)
    shelf.note(kept, b"note")
    assert kept.label.note == b"note"
    shelf.remove(kept)


def test_the_names_of_two_thousand_mounts_fit_one_variable_of_the_environment() -> None:
    """execve(2): 128 KiB. After years, in which the numbers have grown."""
    names: list[str] = []

    class Names(NoStore):
        def keep(self, name: str, _descriptor: int, /) -> None:
            names.append(name)

    shelf = Shelf(Names())
    shelf._next = 10**9
    for _ in range(3):
        add(shelf, "x" * 64).close()
    assert len(names) == 9
    assert max(len(name) + 1 for name in names) * 6000 < 128 * 1024


def test_names_are_told_apart() -> None:
    for name in ("device 1", "state 20", "label-a 3", "label-b 3", "acme/web nosymfollow"):
        assert is_kept(name)
    for name in ("mountd", "daemon", "device", "device x", "connection"):
        assert not is_kept(name)
