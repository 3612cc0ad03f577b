"""Who may enter a mount, and what nobody sees: users, groups, hidden names, symbolic links."""

import contextlib
import errno
import grp
import os
import pwd
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Mounted, Persona, Server, Stage, digest, outcome
from harness.hostile import HostileClient, honest
from harness.syscalls import RENAME_NOREPLACE, exchange, link_following, renameat2
from harness.waiting import records, told

ALL: Final = ["read", "write", "execute", "delete"]


def person(name: str, *groups: str) -> Persona:
    entry = pwd.getpwnam(name)
    return Persona(entry.pw_uid, entry.pw_gid, tuple(grp.getgrnam(group).gr_gid for group in groups))


INSIDER: Final = person("games")
OUTSIDER: Final = person("bin")
MEMBER: Final = person("man", "staff")
"""In no list by name, but in a group of the list."""
BY_PRIMARY_GROUP: Final = Persona(61001, grp.getgrnam("staff").gr_gid)


def policy() -> dict[str, Any]:
    def rules(*first: dict[str, Any]) -> list[dict[str, Any]]:
        return [*first, {"path": "/**", "allow": list(ALL)}]

    tenants = {
        "named": {"users": ["games"], "groups": ["staff"], "rules": rules()},
        "alone": {"users": ["games"], "rules": rules()},
        "anyone": {"users": ["*"], "rules": rules()},
        "nobody": {"users": [], "rules": rules()},
        "hiding": {
            "users": ["root"],
            "rules": rules({"path": "/secret", "hide": True}, {"path": "/*/key-*", "hide": True}),
        },
        "inside": {"users": ["root"], "rules": rules(), "symlinks": "inside"},
        "as-is": {"users": ["root"], "rules": rules(), "symlinks": "as-is"},
        "deny": {"users": ["root"], "rules": rules(), "symlinks": "deny"},
    }
    return {"tenants": {name: {"tokens": [{"sha256": digest(name)}], **body} for name, body in tenants.items()}}


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    return stage.server(policy())


def mount(stage: Stage, server: Server, tenant: str) -> Mounted:
    return stage.mount(server=server, tenant=tenant, name=tenant)


# Entry.


@pytest.fixture(scope="module")
def named(stage: Stage, server: Server) -> Mounted:
    mounted = mount(stage, server, "named")
    (mounted.export / "f").write_text("content")
    (mounted.export / "f").chmod(0o666)
    return mounted


def looks(path: Path) -> dict[str, str]:
    """How everything ends that one can do from outside."""
    return {
        "stat": outcome(os.stat, path / "f"),
        "read": outcome(lambda: (path / "f").read_bytes()),
        "list": outcome(os.listdir, path),
        "write": outcome(lambda: (path / "f").write_text("content")),
        "statvfs": outcome(os.statvfs, path),
        "root": outcome(os.stat, path),
    }


OK: Final = dict.fromkeys(("stat", "read", "list", "write", "statvfs", "root"), "ok")
DENIED: Final = dict.fromkeys(OK, "EACCES")


def test_a_user_of_the_tenant(named: Mounted) -> None:
    assert INSIDER.call(looks, named.path) == OK


def test_a_member_of_a_group_of_the_tenant(named: Mounted) -> None:
    """By a supplementary group too, which a FUSE request does not tell of."""
    assert BY_PRIMARY_GROUP.call(looks, named.path) == OK
    assert MEMBER.call(looks, named.path) == OK


def test_anyone_else_is_kept_out_whatever_the_kernel_has_cached(server: Server, named: Mounted) -> None:
    assert INSIDER.call(looks, named.path) == OK
    assert os.listdir(named.path) == ["f"]
    before = len(told(server))
    assert OUTSIDER.call(looks, named.path) == DENIED
    assert OUTSIDER.outcome(os.listdir, named.path.parent) == "EACCES"
    assert OUTSIDER.outcome(os.chdir, named.path) == "EACCES"
    assert told(server)[before:] == [], "the kernel refused it; nothing of it reached the worker"
    # What is above says nothing of the tenant's exports.
    assert os.lstat(named.path.parent).st_mode & 0o777 == 0o750
    assert stat.S_IMODE(os.lstat(named.path.parent.parent).st_mode) == 0o755


def test_an_outsider_with_a_descriptor_from_inside(stage: Stage, server: Server) -> None:
    """Given a directory that is open, nobody has to enter. Where no groups let anyone in, the worker knows whom to refuse."""
    mounted = mount(stage, server, "alone")
    (mounted.export / "f").touch(0o666)
    with _opened(mounted.path, os.O_PATH) as directory:
        assert INSIDER.outcome(os.stat, "f", dir_fd=directory) == "ok"
        for look in (
            lambda: os.stat("f", dir_fd=directory),
            lambda: os.open("f", os.O_RDONLY, dir_fd=directory),
            lambda: os.mkdir("x", dir_fd=directory),
            lambda: os.listdir(f"/proc/self/fd/{directory}"),
        ):
            assert OUTSIDER.outcome(look) == "EACCES"
    assert records(server, kind="refused", uid=str(OUTSIDER.uid))[-1]["FUSE_GATED_RULE"] == "users"


def test_anyone(stage: Stage, server: Server) -> None:
    mounted = mount(stage, server, "anyone")
    (mounted.export / "f").touch(0o666)
    (mounted.export / "f").chmod(0o666)
    assert OUTSIDER.call(looks, mounted.path) == OK
    assert stat.S_IMODE(os.lstat(mounted.path.parent).st_mode) == 0o755


def test_nobody(stage: Stage, server: Server) -> None:
    """Without users and groups only root enters, whom nothing can keep out."""
    mounted = mount(stage, server, "nobody")
    (mounted.export / "f").touch()
    assert OUTSIDER.call(looks, mounted.path) == DENIED
    assert INSIDER.call(looks, mounted.path) == DENIED
    assert looks(mounted.path) == OK


def test_mapped_ownership(named: Mounted) -> None:
    """What is shown belongs to the first user and the first group, on the client to whoever runs it."""
    info = (named.path / "f").stat()
    assert (info.st_uid, info.st_gid) == (INSIDER.uid, grp.getgrnam("staff").gr_gid)
    INSIDER.call(os.mkdir, named.path / "made")
    made = (named.export / "made").stat()
    assert (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid())
    assert INSIDER.outcome(os.chown, named.path / "made", INSIDER.uid, -1) == "ok"
    assert outcome(os.chown, named.path / "made", 7777, -1) == "EPERM"
    os.rmdir(named.path / "made")


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# Hidden names.


@pytest.fixture(scope="module")
def hiding(stage: Stage, server: Server) -> Mounted:
    mounted = mount(stage, server, "hiding")
    export = mounted.export
    (export / "secret" / "below").mkdir(parents=True)
    (export / "secret" / "below" / "f").write_text("the secret")
    (export / "d" / "e").mkdir(parents=True)
    (export / "d" / "key-1").write_text("the key")
    (export / "d" / "open").write_text("no secret")
    (export / "d" / "link").symlink_to("key-1")
    (export / "link").symlink_to("secret")
    (export / "absolute").symlink_to(export / "secret" / "below" / "f")
    (export / "chain").symlink_to("link/below/f")
    (export / "d" / "up").symlink_to("../secret")
    return mounted


WAYS: Final = {
    "name": "secret",
    "beneath": "secret/below/f",
    "dots": "d/../secret/below",
    "dots from beneath": "d/e/../../secret",
    "slashes": "d//..//secret",
    "slash at the end": "secret/",
    "dot": "./secret/.",
    "link": "link",
    "through a link": "link/below/f",
    "absolute link": "absolute",
    "chain of links": "chain",
    "link that goes up": "d/up/below",
    "link beside": "d/link",
    "wildcard": "d/key-1",
    "self": "secret/../secret",
    "not there": "secret/nothing",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_hidden_name_is_not_there(hiding: Mounted, way: str) -> None:
    path = str(hiding.path) + "/" + WAYS[way]
    looks: list[Callable[[], object]] = [
        lambda: os.stat(path),
        lambda: os.open(path, os.O_RDONLY),
        lambda: os.open(path, os.O_PATH),
        lambda: os.listdir(path),
        lambda: os.listxattr(path),
        lambda: os.chmod(path, 0o777),
        lambda: os.truncate(path, 0),
        lambda: link_following(path, hiding.path / "stolen"),
    ]
    if ("link" not in way and way != "name") or way == "wildcard":
        looks += [lambda: os.lstat(path), lambda: os.rename(path, hiding.path / "stolen"), lambda: os.unlink(path)]
    heard = {outcome(look) for look in looks}
    assert heard <= {"ENOENT", "EACCES"} and "ENOENT" in heard, heard  # noqa: PT018
    assert not os.access(path, os.F_OK)
    assert not (hiding.export / "stolen").exists()
    assert (hiding.export / "secret" / "below" / "f").read_text() == "the secret"
    assert (hiding.export / "d" / "key-1").read_text() == "the key"


def test_hidden_names_are_not_listed(hiding: Mounted) -> None:
    assert "secret" not in os.listdir(hiding.path)
    assert sorted(os.listdir(hiding.path / "d")) == ["e", "link", "open", "up"]
    walked = [name for _, directories, files in os.walk(hiding.path) for name in (*directories, *files)]
    assert not [name for name in walked if name in ("secret", "below") or name.startswith("key-")]
    # Also for whoever reads the raw entries, and the position after each.
    with os.scandir(hiding.path) as entries:
        assert {entry.name for entry in entries} == set(os.listdir(hiding.export)) - {"secret"}


MAKING: Final[dict[str, Callable[[Path], object]]] = {
    "create": lambda path: os.open(path, os.O_CREAT | os.O_WRONLY),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink("x", path),
    "link": lambda path: os.link(path.parent / "open", path),
    "rename": lambda path: os.rename(path.parent / "open", path),
    "rename without replacing": lambda path: renameat2(path.parent / "open", path, RENAME_NOREPLACE),
}


@pytest.mark.parametrize("name", ["key-1", "key-2"])
@pytest.mark.parametrize("how", MAKING)
def test_a_hidden_name_cannot_be_made_whether_it_is_there_or_not(hiding: Mounted, how: str, name: str) -> None:
    """The answer is the same, or one could ask for the names that are hidden by trying to make them."""
    assert outcome(MAKING[how], hiding.path / "d" / name) == "EACCES"
    assert (hiding.export / "d" / "open").read_text() == "no secret"
    assert not (hiding.export / "d" / "key-2").exists()


def test_exchange_brings_nothing_out(hiding: Mounted) -> None:
    assert outcome(exchange, hiding.path / "d" / "key-1", hiding.path / "d" / "open") == "ENOENT"
    assert outcome(exchange, hiding.path / "d" / "open", hiding.path / "d" / "key-1") == "ENOENT"
    assert outcome(exchange, hiding.path / "secret", hiding.path / "d") == "ENOENT"
    assert (hiding.export / "d" / "open").read_text() == "no secret"


def test_a_directory_with_hidden_names_cannot_be_moved_to_where_they_show(hiding: Mounted) -> None:
    """/d/key-1 is hidden by /*/key-*; at /d/e/x/key-1 it would not be."""
    (hiding.export / "other" / "deep").mkdir(parents=True)
    assert outcome(os.rename, hiding.path / "d", hiding.path / "other" / "deep" / "d") == "EXDEV"
    assert outcome(os.rename, hiding.path / "d", hiding.path / "other" / "d") == "EXDEV"
    # A place beside it hides the same.
    os.rename(hiding.path / "d", hiding.path / "moved")
    assert outcome(os.stat, hiding.path / "moved" / "key-1") == "ENOENT"
    os.rename(hiding.path / "moved", hiding.path / "d")


@pytest.mark.parametrize("name", ["Secret", "SECRET", "secret ", "secret.", "\u017fecret", "se\u0441ret"])
def test_case_and_encoding_make_another_name(hiding: Mounted, name: str) -> None:
    """Names are bytes: what looks alike is another file, and never leads to the hidden one."""
    assert outcome(os.stat, hiding.path / name) == "ENOENT"
    (hiding.path / name).write_text("another")
    assert (hiding.export / name).read_text() == "another"
    assert name in os.listdir(hiding.path)
    (hiding.path / name).unlink()


def test_a_hidden_name_that_a_case_folding_client_would_find(server: Server) -> None:
    """A client whose filesystem folds case or composes letters answers for names that the rules do not hide. Its names are
    its own to keep; what the policy hides by name stays hidden by that name."""

    def folding(operation: str, arguments: Any, request: Any) -> Any:
        target = getattr(arguments, "target", None)
        if operation == "getattr" and isinstance(target, bytes):
            name = unicodedata.normalize("NFC", target.decode()).casefold().encode()
            return honest(operation, type(arguments)(b"f" if name == b"secret" else name), request)
        return honest(operation, arguments, request)

    with HostileClient(server, tenant="hiding") as client:
        path = client.open(folding)
        assert client.outcome(os.stat, path / "secret") == "ENOENT"
        assert all(getattr(arguments, "target", b"") != b"secret" for _, arguments in client.requests)
        client.leave()


def test_a_directory_that_only_holds_hidden_names_betrays_itself(hiding: Mounted) -> None:
    """The documents say so: rmdir tells ENOTEMPTY."""
    (hiding.export / "box").mkdir()
    (hiding.export / "box" / "key-1").touch()
    assert os.listdir(hiding.path / "box") == []
    assert outcome(os.rmdir, hiding.path / "box") == "ENOTEMPTY"
    assert (hiding.export / "box" / "key-1").exists()


# Symbolic links.


LINKS: Final = {
    "beside": "f",
    "beneath": "d/g",
    "root": "/etc/passwd",
    "up and out": "../../../../../../../../etc/passwd",
    "out by its own name": "d/../../f",
    "proc": "/proc/self/root/etc/passwd",
    "dangling": "nothing",
}
STAYS: Final = {"beside": "ok", "beneath": "ok", "dangling": "ENOENT"}


@pytest.mark.parametrize("mode", ["inside", "as-is", "deny"])
def test_symbolic_links(stage: Stage, server: Server, mode: str) -> None:
    mounted = mount(stage, server, mode)
    (mounted.export / "d").mkdir()
    (mounted.export / "f").write_text("file")
    (mounted.export / "d" / "g").write_text("deep")
    (mounted.export / "d" / "back").symlink_to("../f")
    (mounted.export / "d" / "too-far").symlink_to("../../f")
    (mounted.export / "absolute").symlink_to(mounted.export / "d" / "g")
    for name, target in LINKS.items():
        (mounted.export / name).symlink_to(target)
    followed = {name: outcome(os.stat, mounted.path / name) for name in (*LINKS, "absolute", "d/back", "d/too-far")}
    shown = {name: outcome(os.readlink, mounted.path / name) for name in (*LINKS, "absolute", "d/back", "d/too-far")}
    if mode == "inside":
        inner = {**STAYS, "absolute": "ok", "d/back": "ok"}
        assert followed == {name: inner.get(name, "EACCES") for name in followed}
        assert shown == {name: "ok" if name in inner else "EACCES" for name in shown}
        assert os.readlink(mounted.path / "absolute") == "d/g"
        assert (mounted.path / "absolute").read_text() == "deep"
    elif mode == "as-is":
        assert set(shown.values()) == {"ok"}
        assert followed["root"] == "ok"
        assert os.stat(mounted.path / "root").st_ino == os.stat("/etc/passwd").st_ino
    else:
        assert set(followed.values()) == {"ELOOP"}
        assert set(shown.values()) == {"EACCES"}
        assert "nosymfollow" in Path("/proc/self/mountinfo").read_text().split(str(mounted.path))[1].split()[0]
    # The link itself can always be seen for what it is.
    assert all(stat.S_ISLNK(os.lstat(mounted.path / name).st_mode) for name in LINKS)


def test_links_that_compose_to_a_way_out(stage: Stage, server: Server) -> None:
    """Each target looks as if it stayed inside; one after the other they would leave."""
    mounted = stage.mount(server=server, tenant="inside", name="composed")
    (mounted.export / "a" / "b").mkdir(parents=True)
    (mounted.export / "up").symlink_to("a/b")
    (mounted.export / "a" / "l").symlink_to("../up/../../..")
    (mounted.export / "a" / "b" / "top").symlink_to("../..")
    (mounted.export / "out").symlink_to("a/b/top/../x")
    assert outcome(os.stat, mounted.path / "a" / "l") == "EACCES"
    assert outcome(os.stat, mounted.path / "out") == "EACCES"
    assert os.stat(mounted.path / "a" / "b" / "top").st_ino == os.stat(mounted.path).st_ino


def test_a_link_is_judged_each_time(stage: Stage, server: Server) -> None:
    """The client changes where it leads: what was harmless is not taken on trust."""
    mounted = stage.mount(server=server, tenant="inside", name="changing")
    (mounted.export / "f").touch()
    link = mounted.export / "l"
    link.symlink_to("f")
    assert os.readlink(mounted.path / "l") == "f"
    link.unlink()
    link.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=r"Permission denied|Stale") as caught:
        os.readlink(mounted.path / "l")
    assert caught.value.errno in (errno.EACCES, errno.ESTALE)


def test_what_is_made_through_the_mount_is_made_as_it_is_said(stage: Stage, server: Server) -> None:
    """A target is the client's business; the server follows it only where it stays inside."""
    mounted = stage.mount(server=server, tenant="inside", name="making")
    os.symlink("/etc/passwd", mounted.path / "l")
    assert os.readlink(mounted.export / "l") == "/etc/passwd"
    assert outcome(os.stat, mounted.path / "l") == "EACCES"
