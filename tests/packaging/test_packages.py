"""The packages: without faults that their own tools find, of both kinds alike, and good for a whole life on a real system."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuse_gated import __version__

Built = Any
Guest = Any

PACKAGES = ["fuse-gated", "fuse-gated-client", "python3-fuse-gated"]
TOP = Path(__file__).parents[2]

DEB_ONLY = (
    "/usr/share/doc/",  # each kind has its own documents: README.Debian, the changelog in its own form
    "/usr/share/lintian/",
    "/etc/apparmor.d/",  # on Fedora and its relatives it is SELinux that confines
)
RPM_ONLY = (
    "/usr/share/doc/",
    "/usr/share/licenses/",  # Debian's is in the common licences
    "/usr/lib/python3/dist-packages/fuse_gated-VERSION.dist-info/RECORD",  # dh_python3 and lintian do without these
    "/usr/lib/python3/dist-packages/fuse_gated-VERSION.dist-info/licenses/",
)
RPM_NAMES = {
    "python3-yaml": "python3-pyyaml",
    "python3-prometheus-client": "python3-prometheus_client",
    # Its binding for Python is one of RPM_MORE.
    "python3-seccomp": "libseccomp",
    "python3:any": "/usr/bin/python3",
    # debhelper names it with its alternatives, for containers without systemd.
    "systemd | systemd-standalone-sysusers | systemd-sysusers": "systemd",
}
DEB_MORE = {"passwd"}
"""purge removes the user; a removed rpm leaves it, as Fedora wants it."""
RPM_MORE = {("fuse-gated", "Recommends"): {"(libseccomp-python or python3dist(pyseccomp))"}}
"""What is weaker there than in Debian, where the package has no such thing beside it."""


def test_lintian_finds_nothing(built: Built) -> None:
    done = built.tool("sh", "-c", "lintian --allow-root --fail-on error,warning --info deb/*.changes", check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_override_of_lintian_has_its_reason() -> None:
    for file in (TOP / "debian").glob("*.lintian-overrides"):
        lines = file.read_text().splitlines()
        reasoned = False
        for line in lines:
            reasoned = line.startswith("#") or (reasoned and bool(line))
            assert reasoned, f"{file.name}: {line}"


def test_rpmlint_finds_nothing(built: Built) -> None:
    config = (TOP / "packaging/rpm/rpmlint.toml").read_text()
    (built.place / "rpmlint.toml").write_text(config)
    (built.place / "fuse-gated.spec").write_text((TOP / "packaging/rpm/fuse-gated.spec").read_text())
    done = built.tool("sh", "-c", "rpmlint -c rpmlint.toml rpm/*.rpm fuse-gated.spec", check=False)
    assert done.returncode == 0, done.stdout
    assert " 0 errors, 0 warnings" in done.stdout, done.stdout


def test_one_version_everywhere() -> None:
    changelog = re.match(r"fuse-gated \((.*?)\)", (TOP / "debian/changelog").read_text())
    spec = re.search(r"^Version: *(.*)$", (TOP / "packaging/rpm/fuse-gated.spec").read_text(), re.MULTILINE)
    assert changelog is not None
    assert spec is not None
    assert changelog[1] == spec[1] == __version__


@pytest.mark.parametrize("package", PACKAGES)
def test_both_kinds_have_the_same_files(built: Built, package: str) -> None:
    assert rpm_files(built, package) == deb_files(built, package)


@pytest.mark.parametrize("package", PACKAGES)
def test_both_kinds_require_the_same(built: Built, package: str) -> None:
    for weight in ("Depends", "Recommends", "Suggests"):
        wanted = deb_requirements(built, package, weight) | RPM_MORE.get((package, weight), set())
        assert rpm_requirements(built, package, weight) == wanted, weight


def test_both_kinds_keep_the_same_files_on_upgrade(built: Built) -> None:
    deb = {line for line in control_file(built, "conffiles").splitlines() if not line.startswith(DEB_ONLY)}
    rpm = set(built.tool("rpm", "-qpc", built.rpm_file("fuse-gated")).stdout.split())
    assert rpm == deb == {"/etc/fuse-gated/fuse-gated.yaml", "/etc/fuse-gated/policy.yaml"}


def test_both_kinds_do_the_same_with_the_units(built: Built) -> None:
    scripts = built.tool("rpm", "-qp", "--scripts", built.rpm_file("fuse-gated")).stdout
    post, prerm = control_file(built, "postinst"), control_file(built, "prerm")
    sockets = {"fuse-gated.socket", "fuse-gated-mountd.socket"}
    services = {"fuse-gated.service", "fuse-gated-mountd.service", "fuse-gated-metrics.service"}
    # Those that debhelper calls `debian-installed` it enables again where an administrator has, and never by itself.
    enabled = units(post, "deb-systemd-helper enable") - units(post, "debian-installed")
    assert units(scripts, "preset") == enabled == sockets
    assert units(scripts, "try-restart") == units(post, "try-restart") == services
    assert units(scripts, "disable --now") == units(prerm, "invoke stop") - {"fuse-gated.slice"} == (
        sockets | services | {"fuse-gated-metrics.socket"}
    )


def test_rpms_in_an_empty_root(built: Built) -> None:
    files = " ".join(built.rpm_file(package) for package in PACKAGES)
    # The users are made by systemd-sysusers, which an empty root does not have.
    options = "--nodeps --noscripts --define '__systemd_sysusers /bin/true'"
    built.tool("sh", "-c", f"mkdir empty && rpm --root $PWD/empty --initdb && rpm --root $PWD/empty -i {options} {files}")
    root = built.place / "empty"
    there = {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}
    packaged = {file for package in PACKAGES for file in built.tool("rpm", "-qpl", built.rpm_file(package)).stdout.split()}
    assert {file for file in there if not file.startswith(("/var/lib/rpm/", "/usr/lib/sysimage/"))} <= packaged
    assert {file for file in packaged if not (root / file[1:]).exists()} == set()


def test_the_client_needs_nothing_of_the_server(built: Built) -> None:
    """What only the server's package requires must not be imported: in a package of its own the client would not start."""
    hidden = ["systemd", "sdnotify", "seccomp", "pyseccomp", "posix1e", "fusepy", "fuse"]
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"
    start = f"{hide}; from fuse_gated.commands import fuse_gate; fuse_gate.main()"
    done = subprocess.run([sys.executable, "-c", start, "--help"], capture_output=True, text=True, cwd=TOP)
    assert done.returncode == 0, done.stderr
    client, server = (deb_requirements(built, package, "Depends") for package in ("fuse-gated-client", "fuse-gated"))
    assert client < server


def test_what_runs_as_root_imports_from_nowhere_else(built: Built) -> None:
    keeper = "./usr/libexec/fuse-gated/fuse-gated-mountd"
    read = built.tool("sh", "-c", f"dpkg-deb --fsys-tarfile {built.deb_file('fuse-gated')} | tar -xO {keeper}")
    assert read.stdout.startswith("#!/usr/bin/python3 -I\n")


def test_the_repository_is_signed(built: Built) -> None:
    for signed in ("InRelease", "Release.gpg Release"):
        built.tool("sh", "-c", f"cd repo && gpgv --keyring ./fuse-gated.gpg {signed}")
    release = yaml.safe_load((built.repo / "Release").read_text().partition("MD5Sum:")[0])
    assert (release["Origin"], release["Architectures"]) == ("fuse-gated", "all")


def test_the_life_of_the_debs(guest: Guest) -> None:
    assert guest.run("packaging/lifecycle.sh", "repo", "later-repo").endswith("lifecycle: all is well\n")


def test_the_life_of_the_rpms(guest: Guest) -> None:
    assert guest.run("packaging/lifecycle-rpm.sh", "rpm", "later-rpm").endswith("lifecycle-rpm: all is well\n")


def test_autopkgtest(guest: Guest) -> None:
    # The guest is the container that it asks for, which the virtualisation 'null' cannot know.
    options = "--no-built-binaries --ignore-restrictions=isolation-container"
    said = guest.run("sh", "-c", f"autopkgtest {options} deb/*.deb source/ -- null")
    assert re.search(r"^smoke +PASS$", said, re.MULTILINE), said


def deb_files(built: Built, package: str) -> dict[str, str]:
    """Path -> mode, of what is no directory."""
    listed = built.tool("dpkg-deb", "-c", built.deb_file(package)).stdout.splitlines()
    fields = [line.split(maxsplit=5) for line in listed]
    found = {path.removeprefix("."): mode for mode, _owner, _size, _day, _time, path in fields if not mode.startswith("d")}
    assert {owner for _mode, owner, *_ in fields} == {"root/root"}
    return {file: mode for file, mode in found.items() if not file.startswith(DEB_ONLY) and not file.endswith("/INSTALLER")}


def rpm_files(built: Built, package: str) -> dict[str, str]:
    """The same, by the names that Debian's package has."""
    query = r"[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]"
    listed = built.tool("rpm", "-qp", "--qf", query, built.rpm_file(package)).stdout.splitlines()
    found: dict[str, str] = {}
    for line in listed:
        mode, owner, file = line.split(maxsplit=2)
        assert owner == ("root:fuse-gated" if file.startswith("/etc/fuse-gated/") and mode[0] == "-" else "root:root"), line
        if not mode.startswith("d") and not file.startswith(tuple(name.replace("VERSION", __version__) for name in RPM_ONLY)):
            found[file.replace("/zsh/site-functions/", "/zsh/vendor-completions/")] = mode
    return found


def deb_requirements(built: Built, package: str, weight: str) -> set[str]:
    """As rpm would write them."""
    text = built.tool("dpkg-deb", "-f", built.deb_file(package), weight).stdout.strip()
    found = set()
    for one in text.split(", ") if text else []:
        name, _, version = one.partition(" (")
        if name in DEB_MORE:
            continue
        found.add(" ".join([RPM_NAMES.get(name, name), *([version.rstrip(")")] if version else [])]))
    return found


def rpm_requirements(built: Built, package: str, weight: str) -> set[str]:
    query = {"Depends": "--requires", "Recommends": "--recommends", "Suggests": "--suggests"}[weight]
    listed = built.tool("rpm", "-qp", query, built.rpm_file(package)).stdout.splitlines()
    # Its own features, its scriptlets' shell, and what it provides itself.
    own = ("rpmlib(", "/bin/sh", "config(", "group(", "user(")
    found = {re.sub(r"^(python3-fuse-gated = .*)-1$", r"\1", line.strip()) for line in listed if not line.startswith(own)}
    if package == "python3-fuse-gated":
        # Debian's is wanted by what compiles its files at the installation.
        found |= {"/usr/bin/python3"} if weight == "Depends" else set()
    return found


def control_file(built: Built, name: str) -> str:
    text: str = built.tool("dpkg-deb", "-I", built.deb_file("fuse-gated"), name).stdout
    return text


def units(script: str, command: str) -> set[str]:
    """The units on the lines that have `command`."""
    joined = script.replace("\\\n", " ")
    lines = [line.partition(command)[2] for line in joined.splitlines() if command in line]
    return {found for line in lines for found in re.findall(r"fuse-gated[a-z-]*\.(?:service|socket|slice)", line)}
