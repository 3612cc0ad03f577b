"""Random trees, random rules, random system calls, as several users, on a live mount: each call ends as the gate says.

What the gate allows ends as on a bare copy of the client's tree, with the same result and the same effect. What it denies ends
with the gate's errno and without any effect. Where a call is denied and would also fail by itself, the kernel may be the first
to say so; but of a hidden name nobody learns that it is there.
"""

import grp
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from harness import Mounted, Persona, Stage, digest
from harness.persona import outcome
from harness.syscalls import RENAME_NOREPLACE, exchange, faccessat, renameat2
from harness.waiting import told, wait_for_record
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from fuse_gated.config.policy_file import parse_policy
from fuse_gated.edge.etc import identity
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.policy import HIDDEN
from fuse_gated.gate.verdict import Verdict

OWNER: Final = "games"
"""The first user, to whom everything shown belongs."""
_OWNER = pwd.getpwnam(OWNER)
_OUTSIDER = pwd.getpwnam("bin")
USERS: Final = {
    "root": Persona(0, 0),
    "owner": Persona(_OWNER.pw_uid, _OWNER.pw_gid, tuple(group.gr_gid for group in grp.getgrall()[:3])),
    "outsider": Persona(_OUTSIDER.pw_uid, _OUTSIDER.pw_gid),
}
NAMES: Final = ("a", "b", "c", "d")
PERMISSIONS: Final = ("read", "write", "execute", "delete")
FLAGS: Final = os.O_NONBLOCK | os.O_NOFOLLOW

# What is tried.


@dataclass(frozen=True)
class Call:
    """`run` does it beneath a root; `verdict` is what the gate says once the names have been looked up; a call that `makes`
    goes on where the name at its last path is not there."""

    run: Callable[[Path, str, str], Any]
    verdict: Callable[["World", str, str], Verdict | None]
    two: bool = False
    makes: bool = False
    finds_first: bool = False


def _open(flags: int) -> Callable[[Path, str, str], None]:
    def run(root: Path, path: str, _other: str) -> None:
        os.close(os.open(root / path, flags | FLAGS, 0o644))

    return run


def _read(root: Path, path: str, _other: str) -> bytes:
    descriptor = os.open(root / path, os.O_RDONLY | FLAGS)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def _write(root: Path, path: str, _other: str) -> int:
    descriptor = os.open(root / path, os.O_WRONLY | FLAGS)
    try:
        return os.write(descriptor, b"written")
    finally:
        os.close(descriptor)


def _list(root: Path, path: str, _other: str) -> list[str]:
    return sorted(os.listdir(root / path))


def _look(root: Path, path: str, _other: str) -> tuple[int, int]:
    info = os.lstat(root / path)
    return info.st_mode, info.st_size if stat.S_ISREG(info.st_mode) else 0


def _opened(flags: int) -> Callable[["World", str, str], Verdict | None]:
    def verdict(world: "World", path: str, _other: str) -> Verdict | None:
        if world.is_fifo(path):
            return None  # a pipe of the server's own kernel, to which the client's FIFO lends its name only
        if world.is_directory(path):
            return world.gate.list(path.encode())
        return world.gate.judge("open", path.encode(), flags=flags)

    return verdict


def _created(flags: int) -> Callable[["World", str, str], Verdict | None]:
    def verdict(world: "World", path: str, _other: str) -> Verdict | None:
        if world.is_seen(path):
            # There is something to open, or O_EXCL ends it.
            return None if flags & os.O_EXCL else _opened(flags)(world, path, "")
        made = world.gate.judge("create", path.encode())
        return made if made.errno is not None else world.gate.judge("open", path.encode(), flags=flags)

    return verdict


def _judged(operation: str) -> Callable[["World", str, str], Verdict]:
    return lambda world, path, _other: world.gate.judge(operation, path.encode())


def _made(operation: str) -> Callable[["World", str, str], Verdict | None]:
    return lambda world, path, _other: None if world.is_seen(path) else world.gate.judge(operation, path.encode())


def _accessed(mask: int) -> Callable[["World", str, str], Verdict]:
    return lambda world, path, _other: world.gate.judge("access", path.encode(), directory=world.is_directory(path), mask=mask)


def _renamed(world: "World", old: str, new: str) -> Verdict | None:
    if old == new:
        return None  # the kernel does nothing, and asks nobody (vfs_rename)
    directory, replaces = world.is_directory(old), world.is_seen(new)
    return world.gate.judge("rename", old.encode(), new.encode(), directory=directory, replaces=replaces)


def _moved(world: "World", old: str, new: str) -> Verdict | None:
    return (
        None if world.is_seen(new) else world.gate.judge("rename", old.encode(), new.encode(), directory=world.is_directory(old))
    )


def _exchanged(world: "World", old: str, new: str) -> Verdict | None:
    if old == new:
        return None
    directory = world.is_directory(old) or world.is_directory(new)
    return world.gate.judge("exchange", old.encode(), new.encode(), directory=directory)


def _linked(world: "World", old: str, new: str) -> Verdict | None:
    return None if world.is_seen(new) else world.gate.judge("link", old.encode(), new.encode())


CALLS: Final[dict[str, Call]] = {
    "lstat": Call(_look, _judged("getattr")),
    "list": Call(_list, _judged("opendir")),
    "read": Call(_read, _opened(os.O_RDONLY)),
    "write": Call(_write, _opened(os.O_WRONLY)),
    "open to read and write": Call(_open(os.O_RDWR), _opened(os.O_RDWR)),
    "open to truncate": Call(_open(os.O_RDONLY | os.O_TRUNC), _opened(os.O_RDONLY | os.O_TRUNC)),
    "create": Call(_open(os.O_CREAT | os.O_WRONLY), _created(os.O_WRONLY), makes=True),
    "create to read": Call(_open(os.O_CREAT | os.O_RDWR), _created(os.O_RDWR), makes=True),
    "create anew": Call(_open(os.O_CREAT | os.O_EXCL | os.O_WRONLY), _created(os.O_EXCL | os.O_WRONLY), makes=True),
    "mkdir": Call(lambda root, path, _: os.mkdir(root / path), _made("mkdir"), makes=True),
    "mkfifo": Call(lambda root, path, _: os.mkfifo(root / path), _made("mknod"), makes=True),
    "symlink": Call(lambda root, path, _: os.symlink("a", root / path), _made("symlink"), makes=True),
    "unlink": Call(lambda root, path, _: os.unlink(root / path), _judged("unlink")),
    "rmdir": Call(lambda root, path, _: os.rmdir(root / path), _judged("rmdir")),
    "chmod": Call(lambda root, path, _: os.chmod(root / path, 0o751), _judged("chmod")),
    "truncate": Call(lambda root, path, _: os.truncate(root / path, 3), _judged("truncate")),
    "utime": Call(lambda root, path, _: os.utime(root / path, (1, 2)), _judged("utimens")),
    "setxattr": Call(lambda root, path, _: os.setxattr(root / path, "user.x", b"v"), _judged("setxattr")),
    "getxattr": Call(lambda root, path, _: os.getxattr(root / path, "user.x"), _judged("getxattr")),
    "access to read": Call(lambda root, path, _: faccessat(root / path, os.R_OK), _accessed(os.R_OK)),
    "access to write": Call(lambda root, path, _: faccessat(root / path, os.W_OK), _accessed(os.W_OK)),
    "access to execute": Call(lambda root, path, _: faccessat(root / path, os.X_OK), _accessed(os.X_OK)),
    "rename": Call(lambda root, old, new: os.rename(root / old, root / new), _renamed, two=True, makes=True),
    "move": Call(lambda root, old, new: renameat2(root / old, root / new, RENAME_NOREPLACE), _moved, two=True, makes=True),
    "exchange": Call(lambda root, old, new: exchange(root / old, root / new), _exchanged, two=True),
    "link": Call(
        lambda root, old, new: os.link(root / old, root / new, follow_symlinks=False),
        _linked,
        two=True,
        makes=True,
        finds_first=True,
    ),
}
FOLLOWING: Final = frozenset(
    {"chmod", "truncate", "utime", "setxattr", "getxattr", "list", *(name for name in CALLS if "access" in name)}
)
"""These go where a symbolic link leads, which is another path: they are not tried on one."""


class World:
    """The mount, the client's tree behind it, and a bare copy of that."""

    def __init__(self, mounted: Mounted, bare: Path, gate: Gate) -> None:
        self.mounted, self.bare, self.gate = mounted, bare, gate

    def is_directory(self, path: str) -> bool:
        return stat.S_ISDIR(self._mode(path))

    def is_fifo(self, path: str) -> bool:
        return stat.S_ISFIFO(self._mode(path))

    def has_link(self, path: str) -> bool:
        parts = path.split("/")
        return any(stat.S_ISLNK(self._mode("/".join(parts[:end]))) for end in range(1, len(parts) + 1))

    def is_seen(self, path: str) -> bool:
        """There, and not hidden."""
        return self._mode(path) != 0 and self.gate.see(path.encode()).errno is None

    def is_hidden(self, path: str) -> bool:
        return self.gate.rules.standing(path.encode()).level == HIDDEN

    def _mode(self, path: str) -> int:
        try:
            return os.lstat(self.bare / path).st_mode
        except OSError:
            return 0

    def refusal(self, call: Call, path: str, other: str) -> str | None:
        """The errno with which the gate ends the call, in the order in which the kernel asks; None where it lets it through."""
        steps = [(path, False, False), (path, True, call.makes and not call.two)]
        if call.two:
            second = [(other, False, False), (other, True, call.makes)]
            # link(2) finds the file first; rename(2) both directories, and then the names in them.
            steps = [*steps, *second] if call.finds_first else [steps[0], second[0], steps[1], second[1]]
        for step in steps:
            ended, errno = self._step(*step)
            if ended:
                return errno
        verdict = call.verdict(self, path, other)
        return None if verdict is None else verdict.errno

    def _step(self, path: str, last: bool, made: bool) -> tuple[bool, str | None]:
        """Whether the call ends while its path is walked, or while its last name is looked up; and by what refusal, if any."""
        parts = path.split("/")
        for above in [path] if last else ["/".join(parts[:end]) for end in range(1, len(parts))]:
            errno = self.gate.see(above.encode()).errno
            # A hidden name is one that is not there: what would make it goes on, to be refused.
            if errno is not None and not (made and errno == "ENOENT"):
                return True, errno
            if not made and not (self._mode(above) if last else self.is_directory(above)):
                return True, None
        return False, None

    def hidden_in(self, directory: str, names: list[str]) -> list[str]:
        """Those of the names in a directory of the bare copy that are hidden; as shutil.copytree asks."""
        return [name for name in names if self.is_hidden(os.path.relpath(os.path.join(directory, name), self.bare))]

    def tree(self, root: Path) -> dict[str, tuple[int, object]]:
        """Names, modes and contents."""
        found: dict[str, tuple[int, object]] = {}
        for directory, directories, files in os.walk(root):
            for name in (*directories, *files):
                full = Path(directory, name)
                mode = full.lstat().st_mode
                content = full.read_bytes() if stat.S_ISREG(mode) else os.readlink(full) if stat.S_ISLNK(mode) else None
                found[str(full.relative_to(root))] = (mode, content)
        return found


def attempt(call: Call, root: Path, path: str, other: str) -> tuple[str, Any]:
    """How it ended, and what it returned."""
    os.umask(0o022)
    result: list[Any] = [None]
    ended = outcome(lambda: result.__setitem__(0, call.run(root, path, other)))
    return ended, result[0]


# What is random.

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
patterns = st.lists(st.sampled_from((*NAMES, "*", "**", "[ab]")), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
hiding = st.builds(lambda path: {"path": path, "hide": True}, patterns)
granting = st.builds(
    lambda path, granted: {"path": path, "allow": granted},
    patterns,
    st.lists(st.sampled_from(PERMISSIONS), min_size=1, max_size=4, unique=True),
)
refusing = st.builds(
    lambda path, refused: {"path": path, "deny": refused},
    patterns,
    st.lists(st.sampled_from(PERMISSIONS), min_size=1, max_size=2, unique=True),
)
rules = st.one_of(hiding, granting, refusing, refusing, refusing)
ENDS: Final = ((), ("read",), ("read", "write"), ("read", "write", "delete"), *[PERMISSIONS] * 6)
"""What the last rule allows everywhere: where nothing is allowed there is little to try."""
ends = st.sampled_from(ENDS).map(lambda granted: [{"path": "/**", "allow": list(granted)}] if granted else [])
policies = st.builds(lambda first, last: first + last, st.lists(rules, max_size=4), ends)
trees = st.dictionaries(paths, st.sampled_from(["directory", "file", "file", "program", "link", "fifo"]), min_size=3, max_size=12)
users = st.sampled_from(["root", "owner"] * 4 + ["outsider"])


@st.composite
def stories(draw: st.DrawFn) -> tuple[dict[str, str], list[dict[str, Any]], list[tuple[str, str, str, str]]]:
    """A tree, rules, and calls, most of them about what is in the tree."""
    tree = draw(trees)
    known = sorted({*tree, *(path.rpartition("/")[0] for path in tree)} - {""})
    path = st.one_of(*[st.sampled_from(known)] * 5, paths) if known else paths
    script = draw(st.lists(st.tuples(st.sampled_from(sorted(CALLS)), users, path, path), min_size=15, max_size=40))
    return tree, draw(policies), script


def grow(root: Path, tree: dict[str, str]) -> None:
    """What has others beneath it is a directory, whatever it was to be."""
    for path, kind in sorted(tree.items()):
        full = root / path
        try:
            full.parent.mkdir(parents=True, exist_ok=True)
            if kind == "directory" or any(other.startswith(f"{path}/") for other in tree):
                full.mkdir(exist_ok=True)
            elif kind == "link":
                full.symlink_to("b")
            elif kind == "fifo":
                os.mkfifo(full)
            else:
                full.write_text(f"the contents of {path}")
                full.chmod(0o755 if kind == "program" else 0o640)
        except FileExistsError:
            continue


@pytest.fixture(scope="module")
def mounted(stage: Stage) -> Mounted:
    return stage.mount(policy([]))


def policy(chosen: list[dict[str, Any]]) -> dict[str, Any]:
    tenant = {"users": [OWNER, "root"], "audit": "denials", "rules": chosen, "tokens": [{"sha256": digest("acme")}]}
    return {"tenants": {"acme": tenant}}


@settings(
    max_examples=100,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(story=stories())
def test_every_call_ends_as_the_gate_says(mounted: Mounted, story: Any) -> None:
    tree, chosen, script = story
    for entry in os.scandir(mounted.export):
        shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
    os.umask(0o022)
    grow(mounted.export, tree)
    text = yaml.dump(policy(chosen), Dumper=_Plain)
    before = len(told(mounted.server))
    mounted.server.reload(text, "policy applied")
    wait_for_record(mounted.server, before, kind="policy-applied")
    (tenant,) = parse_policy([("policy.yaml", text.encode())])
    with tempfile.TemporaryDirectory(prefix="fuse-gated-test-bare-") as scratch:
        bare = Path(scratch, "bare")
        shutil.copytree(mounted.export, bare, symlinks=True, copy_function=_copy)
        world = World(mounted, bare, Gate(tenant, identity(tenant)))
        for name, user, path, other in script:
            if name in FOLLOWING and world.has_link(path):
                continue
            if any(world.has_link(one.rpartition("/")[0]) for one in (path, other) if "/" in one):
                continue
            note(f"{user}: {name} {path} {other}")
            check(world, name, user, path, other, Path(scratch))
        assert world.tree(mounted.export) == world.tree(bare)
    seen = {
        str(Path(directory, one).relative_to(mounted.path))
        for directory, inner, files in os.walk(mounted.path)
        for one in inner + files
    }
    assert not [path for path in seen if world.is_hidden(path)]


def check(world: World, name: str, user: str, path: str, other: str, scratch: Path) -> None:
    call = CALLS[name]
    errno = "EACCES" if user == "outsider" else world.refusal(call, path, other)
    ended, result = USERS[user].call(attempt, call, world.mounted.path, path, other)
    if errno is None:
        expected, wanted = attempt(call, world.bare, path, other)
        if expected == "ok" and name == "lstat":
            wanted = world.gate.shown_mode(path.encode(), wanted[0]), wanted[1]
        if expected == "ok" and name == "list":
            wanted = [one for one in wanted if world.gate.entry_is_listed(path.encode(), one.encode())]
        assert (ended, result) == (expected, wanted)
    elif ended != errno:
        # Refused by both, and the kernel looked first. What is hidden it has not seen.
        copy = scratch / "copy"
        shutil.copytree(world.bare, copy, symlinks=True, copy_function=_copy, ignore=world.hidden_in)
        expected, _ = attempt(call, copy, path, other)
        shutil.rmtree(copy)
        assert ended == expected != "ok", (ended, errno, expected)


def _copy(source: str, target: str) -> str:
    """As shutil.copy2, and special files too."""
    if stat.S_ISFIFO(os.lstat(source).st_mode):
        os.mkfifo(target)
        os.chmod(target, stat.S_IMODE(os.lstat(source).st_mode))
        return target
    return str(shutil.copy2(source, target, follow_symlinks=False))


class _Plain(yaml.SafeDumper):
    """Without aliases, which a policy may not have."""

    def ignore_aliases(self, _data: object) -> bool:
        return True
