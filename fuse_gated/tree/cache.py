"""What the client has said of its files, for as long as it holds.

What is in a directory holds while the client watches it: every change is told by a notice (wire/messages.Notice). An answer is
kept only if nothing became of its path between the question and the answer, by others' hands (a notice came) or by our own:
whoever asks takes `tick` before, and hands it back as `since` with the answer. Without a watch nothing is kept, but where the
policy says for how long.

A file that gets another name beyond what is watched cannot be followed: what is written through that name no watch tells. Nor is
the time of the last access, which changes with each look.

The gate knows nothing of this: what is answered from here has been judged, limited and told like anything else.
"""

import math
from collections.abc import Iterable
from typing import Final

from fuse_gated.operations import Attributes
from fuse_gated.paths import join, split
from fuse_gated.tree.known import (
    MISSING,
    UNKNOWN,
    Directory,
    Missing,
    Name,
    agree,
    has_content,
    is_directory,
    is_same,
    kept,
    look_alike,
)  # fmt: skip
from fuse_gated.tree.store import Store
from fuse_gated.tree.telldir import in_order

LONGEST_PATH: Final = 4096
"""Bytes of a directory's path beyond which it is not kept. No client watches it either: inotify takes none that is longer."""


class Cache(Store):
    """Of one session, at most `room` bytes (0: nothing is ever kept); what was not used for longest goes first, contents before
    directories. The kernel relies on what it was told of what is kept here, and so must hear of two things: `evicted` collects
    the directories that are not kept any more, with their names, and `news` what was found to be different before any notice
    said so, and what is there now."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.hits = 0
        self.misses = 0
        self.news: list[tuple[bytes, Attributes | None]] = []

    @property
    def tick(self) -> int:
        """The time, for `since`."""
        return self._happened.tick

    # What is known.

    def attributes(self, path: bytes, now: float) -> Attributes | Missing | None:
        """None: nobody knows."""
        directories = self._directories
        own = directories.get(path)
        if own is not None and own.attributes is not None and now < own.until:
            return own.attributes
        parent, _, name = path.rpartition(b"/")
        directory = directories.get(parent) if path else None
        if directory is None or now >= directory.until:
            return None
        directories.move_to_end(parent)
        if name not in directory.names:
            return MISSING if directory.complete else None
        found = directory.names[name]
        if found is None:
            return MISSING
        return found.attributes if found.inode not in self._held else None

    def names(self, path: bytes, now: float) -> tuple[Name, ...] | None:
        """All entries of a directory, in the order of telldir.py; None: nobody knows them all."""
        directory = self._directories.get(path)
        if directory is None or not directory.complete or now >= directory.until:
            return None
        self._directories.move_to_end(path)
        if not directory.in_order:
            directory.names = {name: directory.names[name] for name in in_order(directory.names)}
            directory.in_order = True
        found = tuple(name for name in directory.names.values() if name is not None)
        if self._held:
            found = tuple(name._replace(attributes=None) if name.inode in self._held else name for name in found)
        return found if all(name.type for name in found) else None

    def content(self, path: bytes) -> bytes | None:
        """A regular file's whole content, or where a link leads. It is what belongs to the attributes that are known, and holds
        for as long."""
        content = self._contents.get(path)
        if content is not None:
            self._contents.move_to_end(path)
        return content if not (self._held and self._is_held(path)) else None

    def until(self, path: bytes, attributes: Attributes) -> tuple[float, float]:
        """Until when the path stands for this file, and until when these very attributes will do; 0.0: not even now."""
        own = self._directories.get(path)
        directory, name = self._parent(path)
        known = directory.names.get(name) if directory is not None else None
        named = directory.until if directory is not None and known is not None and is_same(known, attributes) else 0.0
        if attributes.inode in self._held:
            return named, 0.0
        if own is not None and own.attributes is attributes:
            return named, own.until
        return named, named if known is not None and known.attributes is attributes else 0.0

    # What the client says.

    def listed(
        self, path: bytes, attributes: Attributes | None, names: Iterable[Name], *, complete: bool, since: int, until: float
    ) -> None:
        """What is in a directory that is watched, or else is to be believed until then. What was known of a watched one stays
        known where the answer says nothing of it."""
        if len(path) > LONGEST_PATH or not self.room or not self._happened.is_in_place(path, since):
            return
        directory = self._directories.get(path)
        if directory is not None and directory.until != until:
            self._drop(path)
        elif directory is not None and attributes is not None and directory.inode not in (0, attributes.inode):
            self.forget(path)
        directory = self._directories.get(path) or self._begin(path, until)
        self._directories.move_to_end(path)
        unchanged = self._happened.is_same(path, since)
        found = {entry.name: entry for entry in names}
        for name, entry in found.items():
            where = join(path, name)
            if self._happened.is_same(where, since):
                self._say(directory, where, name, entry)
            elif name not in directory.names and not directory.complete:
                # Whether it came or went meanwhile its directory tells.
                self._put(directory, name, Name(name, entry.inode, entry.type if unchanged else UNKNOWN, None))
        if unchanged:
            if complete:
                for name in [name for name in directory.names if name not in found]:
                    self._say(directory, join(path, name), name, None)
                    self._remove(directory, name)
                directory.complete = True
            if attributes is not None:
                self._say_of_directory(directory, path, attributes)
        self._make_room()

    def saw(self, path: bytes, attributes: Attributes | None, since: int) -> None:
        """What the client answered of a path; None: it is not there."""
        if not self.unchanged(path, since):
            return
        own = self._directories.get(path)
        if own is not None:
            if attributes is not None and is_directory(attributes) and own.inode in (0, attributes.inode):
                self._say_of_directory(own, path, attributes)
            else:
                self.forget(path)
        directory, name = self._parent(path)
        if directory is not None:
            self._say(directory, path, name, kept(name, attributes))
        self._make_room()

    def read(self, path: bytes, content: bytes, since: int) -> None:
        """A file's whole content, or where a link leads. It is kept while its attributes are."""
        directory, name = self._parent(path)
        known = directory.names.get(name) if directory is not None else None
        if known is None or known.attributes is None or not self.unchanged(path, since):
            return
        self._keep_content(path, content)
        self._make_room()

    def told(self, path: bytes, attributes: Attributes | None) -> bool:
        """A notice: what became of a path; None: it is gone. False if that is what was known, and nobody need hear of it."""
        known = self._known(path)
        if attributes is None:
            same = known is MISSING and path not in self._directories
        else:
            same = isinstance(known, Attributes) and look_alike(known, attributes)
        self._happened.changed(path)
        if attributes is not None and not is_directory(attributes):
            self._drop_content(path)
        if not same:
            self._comes_or_goes(path, attributes)
            self._learn(path, attributes)
            self._make_room()
        # Written to at the very moment that its times say: it may have been written to once more, and look the same.
        return not same or (attributes is not None and has_content(attributes) and attributes.mtime >= attributes.ctime)

    # What we do ourselves.

    def changes(self, path: bytes) -> int:
        """A file is about to be changed. What `changed` wants to hear."""
        if not self.room:
            return 0
        self._happened.changed(path)
        self._drop_content(path)
        own = self._directories.get(path)
        if own is not None:
            own.attributes = None
        directory, name = self._parent(path)
        known = directory.names.get(name) if directory is not None else None
        if directory is not None and known is not None and known.attributes is not None:
            self._put(directory, name, known._replace(attributes=None))
        return self.tick

    def renames(self, path: bytes) -> int:
        """A name is about to come, go, or become another file's."""
        if not self.room:
            return 0
        self._happened.moved(path)
        self.forget(path)
        self._drop_content(path)
        if path:
            self._happened.changed(split(path)[0])
        directory, name = self._parent(path)
        if directory is not None:
            directory.attributes = None
            self._put(directory, name, Name(name, 0, UNKNOWN, None))
            self._make_room()
        return self.tick

    def changed(self, path: bytes, attributes: Attributes | None, since: int) -> None:
        """It was done, and this is what there is now; None: nothing."""
        if not self.room:
            return
        fresh = self.unchanged(path, since)
        known = self._known(path)
        self._happened.changed(path)
        if fresh:
            self._comes_or_goes(path, attributes)
            self._learn(path, attributes)
            self._make_room()
        elif attributes is not None and not isinstance(known, Missing) and self._is_same_file(path, attributes):
            # What a notice said meanwhile may be older than this, or newer.
            if known != attributes:
                self.changes(path)
        elif attributes is not None or known is not MISSING:
            self.renames(path)

    # What does not hold any more.

    def settle(self) -> bool:
        """After each message: whether there is anything in `evicted` or `news`. What is done through one of a file's names is
        told of that one only, so nothing is kept of the others."""
        inodes, self._linked = self._linked, set()
        for path, directory in self._directories.items() if inodes else ():
            for name, known in directory.names.items():
                if known is not None and known.attributes is not None and known.inode in inodes:
                    where = join(path, name)
                    self._drop_content(where)
                    self.news.append((where, known.attributes))
                    self._put(directory, name, known._replace(attributes=None))
        return bool(self.evicted or self.news)

    def clear(self) -> None:
        """Nothing holds."""
        self._happened.everything()
        for known in (self._directories, self._above, self._contents, self.evicted, self.news):
            known.clear()
        self.size = 0

    # Details.

    def _known(self, path: bytes) -> Attributes | Missing | None:
        """As `attributes`, whatever the time."""
        return self.attributes(path, -math.inf)

    def _is_same_file(self, path: bytes, attributes: Attributes) -> bool:
        own = self._directories.get(path)
        directory, name = self._parent(path)
        known = directory.names.get(name) if directory is not None else None
        return (known is None or is_same(known, attributes)) and (own is None or own.inode in (0, attributes.inode))

    def _comes_or_goes(self, path: bytes, attributes: Attributes | None) -> None:
        """What follows for the directory it lies in, and for what lies beneath."""
        if attributes is None or not is_directory(attributes) or not self._is_same_file(path, attributes):
            self.forget(path)
        directory, name = self._parent(path)
        known = directory.names.get(name) if directory is not None else None
        if known is not None and attributes is not None and is_same(known, attributes):
            return
        self._happened.moved(path)
        if not path or (known is None and attributes is None and directory is not None and self._known(path) is MISSING):
            return
        # A listing that is on its way may not know.
        self._happened.changed(split(path)[0])
        if directory is not None:
            directory.attributes = None

    def _learn(self, path: bytes, attributes: Attributes | None) -> None:
        own = self._directories.get(path)
        if own is not None and attributes is not None:
            own.attributes, own.inode = attributes, attributes.inode
        directory, name = self._parent(path)
        before = directory.names.get(name) if directory is not None else None
        self._look_for_links(before, attributes)
        if directory is not None:
            self._drop_content(path)
            self._put(directory, name, kept(name, attributes))

    def _say(self, directory: Directory, path: bytes, name: bytes, entry: Name | None) -> None:
        """An answer says what there is. If that is not what was known, a notice is on its way, and will be nothing new."""
        now = kept(name, entry.attributes) or entry._replace(attributes=None) if entry is not None else None
        before = directory.names.get(name)
        self._look_for_links(before, entry.attributes if entry is not None else None)
        if (name in directory.names or directory.complete) and not agree(before, now):
            self._drop_content(path)
            if directory.until == math.inf:
                self.news.append((path, entry.attributes if entry is not None else None))
        self._put(directory, name, now)

    def _say_of_directory(self, directory: Directory, path: bytes, attributes: Attributes) -> None:
        before = directory.attributes
        if before is not None and not look_alike(before, attributes) and directory.until == math.inf:
            self.news.append((path, attributes))
        directory.attributes, directory.inode = attributes, attributes.inode

    def _look_for_links(self, before: Name | None, attributes: Attributes | None) -> None:
        if attributes is None or is_directory(attributes) or attributes.nlink == 1:
            return
        if before is None or before.attributes is not None or not is_same(before, attributes):
            self._linked.add(attributes.inode)
