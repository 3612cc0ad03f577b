"""The packages, built once for all tests here, and what they are looked at with.

Only `make packages-test` runs these tests: they build everything twice, which takes minutes, and want a Debian 13. Where this
machine is another system they make a root filesystem of it, which is kept in the cache.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from harness import need
from harness.roots import DEV, TOP, build_root, make_root

if "FUSE_GATED_PACKAGES" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

GUEST: Final = TOP / "tests/system/guest.sh"
PACKAGES: Final = ("fuse-gated", "fuse-gated-client", "python3-fuse-gated")
LATER: Final = "9999"
"""A version later than any other, for upgrades."""
_GUEST_PACKAGES: Final = (
    "systemd,systemd-sysv,dbus,libnss-systemd,fuse3,procps,iproute2,man-db,rpm,autopkgtest,apt-utils,dpkg-dev,"
    "python3,python3-websockets,python3-msgspec,python3-yaml,python3-systemd,python3-sdnotify,python3-seccomp,python3-pylibacl,"
    "python3-fusepy"
)


class Built:
    """Packages, and the tools of the system that they were built on."""

    def __init__(self, place: Path, root: Path | None) -> None:
        self.place, self.root = place, root
        self.deb, self.later_deb, self.rpm, self.later_rpm = (place / name for name in ("deb", "later-deb", "rpm", "later-rpm"))
        self.repo, self.later_repo = place / "repo", place / "later-repo"

    def build(self) -> None:
        quick = {"DEB_BUILD_OPTIONS": "nocheck"}
        self._make("build-deb.sh", "--output", self.deb)
        self._make("build-deb.sh", "--output", self.later_deb, "--version", LATER, **quick)
        self._make("build-rpm.sh", "--output", self.rpm)
        self._make("build-rpm.sh", "--output", self.later_rpm, "--release", "2", "--", "--nocheck")
        key = {"SIGNING_HOME": str(self.place / "key")}
        first, second = sorted(self.deb.glob("*.deb")), sorted(self.later_deb.glob("*.deb"))
        self._make("build-repo.sh", "--output", self.repo, *first, **key)
        self._make("build-repo.sh", "--output", self.later_repo, *first, *second, **key)

    def tool(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a tool in the folder of everything that was built; its output as text."""
        enter = [] if self.root is None else [str(DEV / "in-root.sh"), str(self.root), str(self.place)]
        words = [*enter, *map(str, command)]
        return subprocess.run(words, check=check, capture_output=True, text=True, cwd=self.place)

    def rpm_file(self, package: str) -> str:
        """Its path, as tools see it."""
        (found,) = self.rpm.glob(f"{package}-[0-9]*.noarch.rpm")
        return str(found.relative_to(self.place))

    def deb_file(self, package: str) -> str:
        (found,) = self.deb.glob(f"{package}_*.deb")
        return str(found.relative_to(self.place))

    def _make(self, script: str, *arguments: str | Path, **environment: str) -> None:
        where: list[str | Path] = [] if self.root is None else ["--root", self.root]
        command = [str(word) for word in (DEV / script, *where, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All packages of this tree, and of a later version."""
    made = Built(tmp_path_factory.mktemp("packages"), build_root())
    made.place.chmod(0o755)
    made.build()
    return made


class Guest:
    """A Debian 13 under a real systemd, with what was built in /srv and nothing of fuse-gated installed."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def run(self, *command: str) -> str:
        """Run a command in /srv as root; all that it says. It must succeed."""
        enter = ["nsenter", f"--target={self._leader}", "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        enter += ["sh", "-c", 'cd /srv && exec "$@"', "sh"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        done = subprocess.run([*enter, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def guest(built: Built) -> Iterator[Guest]:
    """A guest of the test's own."""
    need("root", "fuse", "nsenter", "ip", "rsync")
    root = make_root("guest", _GUEST_PACKAGES)
    # Not beneath pytest's own folder, whose name is long: an overlay's options have little room.
    with tempfile.TemporaryDirectory(prefix="fuse-gated-packages-", ignore_cleanup_errors=True) as work:
        Path(work).chmod(0o755)
        srv = Path(work, "upper/srv")
        srv.mkdir(parents=True)
        for folder in (built.deb, built.rpm, built.later_rpm, built.repo, built.later_repo, TOP / "tests/packaging"):
            subprocess.run(["rsync", "-a", "--exclude=__pycache__", "--exclude=*.src.rpm", str(folder), str(srv)], check=True)
        subprocess.run([DEV / "copy-source.sh", srv / "source"], check=True)
        command = [str(GUEST), str(root), work, f"fuse-gated-{os.getpid()}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            leader = running.stdout.readline().strip()
            assert leader, "the guest did not boot"
            try:
                yield Guest(int(leader))
            finally:
                running.stdin.close()
