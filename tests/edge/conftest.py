"""A directory of one test's own, and the client's side of it."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_gated.edge.files import Export


@pytest.fixture
def no_umask() -> Iterator[None]:
    """The modes asked for are the modes made, as in the client."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The export's root. What lies beside it in `tmp_path` is outside."""
    directory = tmp_path / "export"
    directory.mkdir()
    return directory


@pytest.fixture(params=["openat2", "walk"])
def export(request: pytest.FixtureRequest, root: Path, no_umask: None) -> Iterator[Export]:
    """The export of `root`, with each way of resolving paths."""
    export = Export(root, openat2=request.param == "openat2")
    yield export
    export.close()


@pytest.fixture
def public_root() -> Iterator[Path]:
    """A root that other users can reach too; pytest's own directories are closed to them."""
    with tempfile.TemporaryDirectory(prefix="fuse-gate-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.fixture(autouse=True)
def sigpipe_stays_ignored() -> Iterator[None]:
    """libfuse, run in this process, leaves SIGPIPE at its default; Python ignores it, and a closed pipe would end the run."""
    yield
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
