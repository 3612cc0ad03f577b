"""Paths as bytes, one safe component at a time.

A path in fuse-gated is relative to the export's root and has no leading slash: b'' is the root, b'src/main.c' a file.
It is bytes, because a name on Linux is bytes (path_resolution(7)). For people, and in rules, it is shown with a leading
slash.
"""

import re

NAME_MAX = 255
"""Bytes in one name (limits.h)."""

_EXPORT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


def is_safe_name(name: bytes) -> bool:
    """Whether `name` is one component that may be looked up: not empty, not '.' or '..', no slash, no NUL, at most 255 bytes."""
    return bool(name) and name not in (b".", b"..") and b"/" not in name and b"\0" not in name and len(name) <= NAME_MAX


def is_mount_name(name: str) -> bool:
    """Whether `name` may be a tenant's or an export's name, and so a directory's name beneath <runtime>/mnt."""
    return _EXPORT_NAME.fullmatch(name) is not None


def join(parent: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory `parent`."""
    return parent + b"/" + name if parent else name


def split(path: bytes) -> tuple[bytes, bytes]:
    """(parent, name) of a path that is not the root."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def components(path: bytes) -> list[bytes]:
    """The names that make up a path; none for the root."""
    return path.split(b"/") if path else []


def is_beneath(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or lies beneath it."""
    return not directory or path == directory or path.startswith(directory + b"/")


def shown(path: bytes) -> str:
    """The path for people: a leading slash, and what is not UTF-8 or not printable as \\xNN."""
    text = "/" + path.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_shown_character(character) for character in text)


def _shown_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
