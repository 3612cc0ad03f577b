"""Reads /etc/fuse-gated, and looks its users and groups up.

Who can write these files decides who reads other people's mounts, so a file that others can write is not read at all.
A symbolic link is followed (configuration management makes them): the file that it leads to is held to the same rule.
"""

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Self, TypeVar

from fuse_gated.config.document import MAX_BYTES
from fuse_gated.config.policy_file import parse_policy
from fuse_gated.config.settings import Settings
from fuse_gated.config.settings_file import at_fault, parse_settings
from fuse_gated.errors import ConfigurationError
from fuse_gated.gate.tenant import Identity, Tenant

SETTINGS_FILE: Final = "fuse-gated.yaml"
POLICY_FILE: Final = "policy.yaml"
POLICY_DIRECTORY: Final = "policy.d"
_PEOPLE: Final = range(1000, 60000)
"""Uids of people who may log in, by the defaults of login.defs(5). The server of a system is none of them."""

Found = TypeVar("Found")


def read_settings(etc: Path) -> Settings:
    """The settings in `etc`/fuse-gated.yaml; all defaults where that file, or `etc` itself, is missing.

    Raises ConfigurationError with every fault.
    """
    with _Reading(etc) as reading:
        text = reading.text(SETTINGS_FILE)
    return Settings() if text is None else parse_settings(text, SETTINGS_FILE)


def read_policy(etc: Path) -> tuple[Tenant, ...]:
    """The tenants in `etc`/policy.yaml and then `etc`/policy.d/*.yaml by name.

    Raises ConfigurationError with every fault, and where there is no policy at all.
    """
    with _Reading(etc) as reading:
        parts = [name for name in reading.names(POLICY_DIRECTORY) if name.endswith(".yaml") and not name.startswith(".")]
        names = [POLICY_FILE, *(f"{POLICY_DIRECTORY}/{name}" for name in parts)]
        files = [(name, text) for name in names if (text := reading.text(name)) is not None]
    if not files:
        shown = _shown(etc)
        raise ConfigurationError(
            f"there is no policy: neither {shown / POLICY_FILE} nor a .yaml file in {shown / POLICY_DIRECTORY}",
            "write one; 'fuse-gatectl token new TENANT' makes the first token for it",
        )
    return parse_policy(files)


def unread_files(etc: Path) -> tuple[str, ...]:
    """Files in policy.d that look as if they were meant and are not read, because their names do not end in .yaml."""
    with _Reading(etc) as reading:
        names = reading.names(POLICY_DIRECTORY)
    meant = [name for name in names if name.lower().endswith((".yml", ".yaml")) and not name.endswith(".yaml")]
    return tuple(f"{POLICY_DIRECTORY}/{name}" for name in meant)


def identity(tenant: Tenant) -> Identity:
    """The tenant's users and groups as this server's numbers.

    What is shown as owned by one, with ownership 'mapped', is the first user's and the first group's: the first user's
    primary group where no group is named, and our own effective ids where no user is.
    Raises ConfigurationError naming every user and group that this server does not have.
    """
    users, missing_users = _look_up([name for name in tenant.users if name != "*"], pwd.getpwnam)
    groups, missing_groups = _look_up(tenant.groups, grp.getgrnam)
    missing = [f"user '{name}'" for name in missing_users] + [f"group '{name}'" for name in missing_groups]
    if missing:
        whose = f"{tenant.place}: tenant '{tenant.name}'"
        faults = tuple(f"{whose}: this server has no {one} (create it, or correct the name)" for one in missing)
        raise ConfigurationError(*at_fault(faults), faults=faults)
    primary_group = users[0].pw_gid if users else os.getegid()
    return Identity(
        owner_uid=users[0].pw_uid if users else os.geteuid(),
        owner_gid=groups[0].gr_gid if groups else primary_group,
        uids=_with_ours(tenant, tuple(user.pw_uid for user in users)),
        gids=tuple(group.gr_gid for group in groups),
        anyone="*" in tenant.users,
    )


def _with_ours(tenant: Tenant, uids: tuple[int, ...]) -> tuple[int, ...]:
    """The copy of an export is kept by a process of our own user, who is then one of the tenant's users, whom the audit names."""
    own = os.geteuid()
    return (*uids, own) if tenant.local is not None and own and own not in uids else uids


def _look_up(names: Iterable[str], find: Callable[[str], Found]) -> tuple[list[Found], list[str]]:
    found: list[Found] = []
    missing: list[str] = []
    for name in names:
        try:
            found.append(find(name))
        except KeyError:
            missing.append(name)
    return found, missing


class _Reading:
    """Opens everything beneath the one directory that it has open, and looks at what it opened, so that nothing can be
    exchanged in between. Leaving it without another error raises ConfigurationError if anything was refused."""

    def __init__(self, etc: Path) -> None:
        self._etc = etc
        self._shown = _shown(etc)
        self._faults: list[str] = []
        self._top: int | None = None

    def __enter__(self) -> Self:
        self._top = self._open(".", os.O_DIRECTORY)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._top is not None:
            os.close(self._top)
        if self._faults and kind is None:
            faults = tuple(self._faults)
            raise ConfigurationError(*at_fault(faults), faults=faults)

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted; none where it is missing or refused."""
        opened = None if self._top is None else self._open(directory, os.O_DIRECTORY)
        if opened is None:
            return []
        try:
            return sorted(os.listdir(opened))
        finally:
            os.close(opened)

    def text(self, name: str) -> bytes | None:
        """A file's text (at most one byte more than may be), or None where it is missing or refused."""
        # O_NONBLOCK: a FIFO of that name must not hold us up.
        opened = None if self._top is None else self._open(name, os.O_NONBLOCK)
        if opened is None:
            return None
        with open(opened, "rb") as file:
            return file.read(MAX_BYTES + 1)

    def _open(self, name: str, flags: int) -> int | None:
        path = self._etc if self._top is None else name
        try:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | flags, dir_fd=self._top)
        except FileNotFoundError:
            return None
        except PermissionError:
            self._fault(name, f"may not be read by {_ourselves()}", _way_in(self._shown / name, flags))
            return None
        except OSError as error:
            self._fault(name, f"cannot be opened: {error.strerror}", "look at what stands there")
            return None
        if self._is_trusted(name, os.fstat(opened), flags):
            return opened
        os.close(opened)
        return None

    def _is_trusted(self, name: str, status: os.stat_result, flags: int) -> bool:
        faults = len(self._faults)
        if not flags & os.O_DIRECTORY and not stat.S_ISREG(status.st_mode):
            self._fault(name, "is not a file", "look at what stands there")
        if status.st_uid not in (0, os.geteuid()):
            self._fault(name, f"belongs to uid {status.st_uid}, neither to root nor to us", f"chown root {self._shown / name}")
        if status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            self._fault(name, f"can be written by others (mode {mode:04o})", f"chmod go-w {self._shown / name}")
        return len(self._faults) == faults

    def _fault(self, name: str, message: str, hint: str) -> None:
        self._faults.append(f"{self._shown / name}: {message} ({hint})")


def _shown(etc: Path) -> Path:
    """The directory's path for people: one that was given to us open is /proc/self/fd/3 to us alone."""
    if etc.parent == Path("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return Path(os.readlink(etc))
    return etc


def _way_in(path: Path, flags: int) -> str:
    """How to let the server read it, and not everybody: it names who may log in."""
    if os.geteuid() in _PEOPLE:
        return "run this as root"
    group: str | int = os.getegid()
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(pwd.getpwuid(os.geteuid()).pw_gid).gr_name
    return f"chgrp {group} {path}; chmod g+{'rx' if flags & os.O_DIRECTORY else 'r'} {path}"


def _ourselves() -> str:
    user = os.geteuid()
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"uid {user}"
