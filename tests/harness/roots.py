"""Root filesystems of Debian 13 for tests, kept between runs, and made anew when what they are made of changes."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from harness.needs import need, need_that

TOP: Final = Path(__file__).parents[2]
DEV: Final = TOP / "packaging/dev"


def cached(name: str, key: str) -> Path:
    """Where something is kept that is made of `key`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fuse-gated"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def make_root(name: str, include: str = "") -> Path:
    """A root filesystem by build-root.sh: with these packages, or with what builds ours."""
    need("root", "mmdebstrap", "unshare")
    control = (TOP / "debian/control").read_text().partition("\n\n")[0]
    root = cached(name, include or (DEV / "build-root.sh").read_text() + control)
    make(root, DEV / "build-root.sh", *([include] if include else []))
    return root


def make(made: Path, script: Path, *arguments: str) -> None:
    """Have `made` (`cached`) by `script DIR ARGUMENT…`, unless it is there."""
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as place:
            done = subprocess.run([script, f"{place}/made", *arguments], capture_output=True)
            need_that(done.returncode == 0, f"{script.name} makes no Debian 13: {done.stderr.decode()[-500:]}")
            Path(place, "made").rename(made)


def build_root() -> Path | None:
    """Where our packages are built: such a root filesystem, or None where this system is Debian 13 itself."""
    system = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
    root = None if system.get("VERSION_CODENAME") == "trixie" else make_root("build")
    if root is None:
        need("dpkg-buildpackage", "lintian", "rpmbuild", "rpmlint", "apt-ftparchive", "gpg")
    return root
