import grp
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.leftovers import descriptors

from fuse_gated.config.settings import Settings
from fuse_gated.edge.etc import identity, read_policy, read_settings, unread_files
from fuse_gated.errors import ConfigurationError
from fuse_gated.gate.tenant import Identity, Tenant

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    return directory


def put(etc: Path, name: str, text: str, mode: int = 0o644) -> Path:
    path = etc / name
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def settings_faults(etc: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        read_settings(etc)
    return [fault.replace(str(etc), "ETC") for fault in raised.value.faults]


def policy_faults(etc: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        read_policy(etc)
    return [fault.replace(str(etc), "ETC") for fault in raised.value.faults]


def raised(read: Callable[[Path], object], etc: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read(etc)
    return caught.value


@contextmanager
def nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_missing_settings_are_all_defaults(etc: Path) -> None:
    assert read_settings(etc) == Settings()
    assert read_settings(etc / "nowhere") == Settings()


def test_settings_are_read(etc: Path) -> None:
    put(etc, "fuse-gated.yaml", "max_sessions: 7\n", 0o640)
    assert read_settings(etc) == Settings(max_sessions=7)


def test_faults_name_the_file(etc: Path) -> None:
    put(etc, "fuse-gated.yaml", "max_session: 7\n")
    assert settings_faults(etc) == [
        "fuse-gated.yaml:1:1: unknown key 'max_session' in the settings (did you mean 'max_sessions'?)"
    ]


def test_a_missing_policy_is_told_with_what_to_do(etc: Path) -> None:
    put(etc, "policy.d/notes.txt", "not a policy")
    for place in (etc, etc / "nowhere"):
        with pytest.raises(ConfigurationError, match=r"there is no policy: neither .*policy.yaml nor") as raised:
            read_policy(place)
        assert "token new" in raised.value.hint


def test_the_policy_is_read_from_all_files_by_name(etc: Path) -> None:
    put(etc, "policy.yaml", "tenants: {last: {}}")
    put(etc, "policy.d/20-b.yaml", "tenants: {b: {}}")
    put(etc, "policy.d/10-a.yaml", "tenants: {a: {}}")
    put(etc, "policy.d/.hidden.yaml", "not even YAML: [")
    put(etc, "policy.d/10-a.yaml~", "not even YAML: [")
    assert [(tenant.name, tenant.place) for tenant in read_policy(etc)] == [
        ("last", "policy.yaml:1"),
        ("a", "policy.d/10-a.yaml:1"),
        ("b", "policy.d/20-b.yaml:1"),
    ]


def test_policy_d_alone_is_a_policy(etc: Path) -> None:
    put(etc, "policy.d/a.yaml", "tenants: {a: {}}")
    assert [tenant.name for tenant in read_policy(etc)] == ["a"]


def test_names_that_are_not_read_although_they_look_meant(etc: Path) -> None:
    assert unread_files(etc) == ()
    for name in ("a.yaml", "b.yml", "c.YAML", "README"):
        put(etc, f"policy.d/{name}", "")
    assert unread_files(etc) == ("policy.d/b.yml", "policy.d/c.YAML")


def test_files_that_others_can_write_are_refused_all_at_once(etc: Path) -> None:
    put(etc, "policy.yaml", "tenants: {a: {}}", 0o664)
    put(etc, "policy.d/b.yaml", "tenants: [", 0o606)
    assert policy_faults(etc) == [
        "ETC/policy.yaml: can be written by others (mode 0664) (chmod go-w ETC/policy.yaml)",
        "ETC/policy.d/b.yaml: can be written by others (mode 0606) (chmod go-w ETC/policy.d/b.yaml)",
    ]


def test_directories_that_others_can_write_are_refused(etc: Path) -> None:
    put(etc, "policy.yaml", "tenants: {a: {}}")
    put(etc, "policy.d/b.yaml", "tenants: {b: {}}")
    (etc / "policy.d").chmod(0o777)
    assert policy_faults(etc) == ["ETC/policy.d: can be written by others (mode 0777) (chmod go-w ETC/policy.d)"]
    etc.chmod(0o775)
    assert policy_faults(etc) == ["ETC: can be written by others (mode 0775) (chmod go-w ETC)"]
    assert settings_faults(etc) == ["ETC: can be written by others (mode 0775) (chmod go-w ETC)"]


@as_root
def test_files_of_other_users_are_refused(etc: Path) -> None:
    os.chown(put(etc, "fuse-gated.yaml", ""), 4242, 0)
    assert settings_faults(etc) == [
        "ETC/fuse-gated.yaml: belongs to uid 4242, neither to root nor to us (chown root ETC/fuse-gated.yaml)"
    ]


@as_root
def test_what_we_may_not_read_is_told(etc: Path) -> None:
    put(etc, "fuse-gated.yaml", "", 0o600)
    put(etc, "policy.d/a.yaml", "")
    (etc / "policy.d").chmod(0o700)
    descriptor = os.open(etc, os.O_PATH)
    # As the daemon has it: open, because it may not walk there. What is said names the place all the same.
    reachable = Path(f"/proc/self/fd/{descriptor}")
    try:
        with nobody():
            told = [error.faults for error in (raised(read_settings, reachable), raised(read_policy, reachable))]
            os.seteuid(0)
            os.seteuid(4242)
            told.append(raised(read_settings, reachable).faults)
            os.seteuid(0)
            os.seteuid(70000)
            told.append(raised(read_settings, reachable).faults)
            os.seteuid(0)
    finally:
        os.close(descriptor)
    file, directory = etc / "fuse-gated.yaml", etc / "policy.d"
    assert told == [
        (f"{file}: may not be read by user nobody (chgrp nogroup {file}; chmod g+r {file})",),
        (f"{directory}: may not be read by user nobody (chgrp nogroup {directory}; chmod g+rx {directory})",),
        (f"{file}: may not be read by uid 4242 (run this as root)",),
        (f"{file}: may not be read by uid 70000 (chgrp 0 {file}; chmod g+r {file})",),
    ]


def test_a_link_is_followed_and_its_target_held_to_the_rule(etc: Path, tmp_path: Path) -> None:
    target = put(tmp_path, "elsewhere/settings.yaml", "max_sessions: 7\n")
    (etc / "fuse-gated.yaml").symlink_to(target)
    assert read_settings(etc).max_sessions == 7
    target.chmod(0o666)
    assert settings_faults(etc) == ["ETC/fuse-gated.yaml: can be written by others (mode 0666) (chmod go-w ETC/fuse-gated.yaml)"]


def test_what_is_not_a_file_is_told_and_holds_nobody_up(etc: Path) -> None:
    os.mkfifo(etc / "policy.yaml", 0o644)
    (etc / "fuse-gated.yaml").mkdir()
    put(etc, "policy.d", "a file", 0o644)
    assert policy_faults(etc) == [
        "ETC/policy.d: cannot be opened: Not a directory (look at what stands there)",
        "ETC/policy.yaml: is not a file (look at what stands there)",
    ]
    assert settings_faults(etc) == ["ETC/fuse-gated.yaml: is not a file (look at what stands there)"]


def test_a_file_that_is_too_large_is_not_read_whole(etc: Path) -> None:
    path = put(etc, "fuse-gated.yaml", "")
    os.truncate(path, 2**40)
    assert settings_faults(etc) == ["fuse-gated.yaml:1:1: the file is larger than 1 MiB (no configuration needs that much)"]


def test_no_descriptor_is_left_open(etc: Path) -> None:
    put(etc, "policy.yaml", "tenants: {a: {}}", 0o666)
    put(etc, "policy.d/b.yaml", "tenants: {b: {}}")
    before = descriptors()
    policy_faults(etc)
    unread_files(etc)
    read_settings(etc)
    assert descriptors() == before


def test_users_and_groups_are_looked_up() -> None:
    daemon = pwd.getpwnam("daemon")
    tenant = Tenant(name="acme", users=("daemon", "bin"), groups=("adm", "sys"))
    assert identity(tenant) == Identity(
        owner_uid=daemon.pw_uid,
        owner_gid=grp.getgrnam("adm").gr_gid,
        uids=(daemon.pw_uid, pwd.getpwnam("bin").pw_uid),
        gids=(grp.getgrnam("adm").gr_gid, grp.getgrnam("sys").gr_gid),
    )


def test_without_groups_the_owner_has_its_primary_group() -> None:
    games = pwd.getpwnam("games")
    assert identity(Tenant(name="acme", users=("games",))) == Identity(
        owner_uid=games.pw_uid, owner_gid=games.pw_gid, uids=(games.pw_uid,)
    )


def test_anyone() -> None:
    ours = Identity(owner_uid=os.geteuid(), owner_gid=os.getegid(), anyone=True)
    assert identity(Tenant(name="acme", users=("*",))) == ours
    daemon = pwd.getpwnam("daemon")
    assert identity(Tenant(name="acme", users=("*", "daemon"))) == Identity(
        owner_uid=daemon.pw_uid, owner_gid=daemon.pw_gid, uids=(daemon.pw_uid,), anyone=True
    )


def test_groups_alone() -> None:
    adm = grp.getgrnam("adm").gr_gid
    assert identity(Tenant(name="acme", groups=("adm",))) == Identity(owner_uid=os.geteuid(), owner_gid=adm, gids=(adm,))


def test_unknown_users_and_groups_are_all_told() -> None:
    with pytest.raises(ConfigurationError) as raised:
        identity(Tenant(name="acme", users=("no-such-user", "daemon", "nor-this"), groups=("no-group",), place="policy.yaml:2"))
    assert raised.value.faults == (
        "policy.yaml:2: tenant 'acme': this server has no user 'no-such-user' (create it, or correct the name)",
        "policy.yaml:2: tenant 'acme': this server has no user 'nor-this' (create it, or correct the name)",
        "policy.yaml:2: tenant 'acme': this server has no group 'no-group' (create it, or correct the name)",
    )
