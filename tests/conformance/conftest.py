"""Where the conformance tests run: a bare local directory, which proves the tests right, and mounts."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Place, Stage, need


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        drivers: str = metafunc.config.getoption("--drivers").replace("kernel", "kernel,watched")
        metafunc.parametrize("place", ["local", *filter(None, drivers.split(","))], indirect=True, scope="module")


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One directory for the module that every user may walk through."""
    need("root")
    if request.param == "local":
        root = Path(tempfile.mkdtemp(prefix="fuse-gated-test-")).resolve()
        root.chmod(0o755)
        try:
            yield Place("local", root, root)
        finally:
            shutil.rmtree(root)
        return
    need("fuse", *(("a mount by an ordinary user", "fusermount3", "fusermount") if request.param == "libfuse" else ()))
    with Stage(request.param, shared=True) as stage:
        mounted = stage.passthrough()
        yield Place(request.param, mounted.path, mounted.export)


@pytest.fixture
def area(place: Place, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own, root's and 0755. Nothing in it needs to be cleared away."""
    name = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.name)[:80]
    path = place.root / f"{name}-{len(os.listdir(place.behind))}"
    path.mkdir()
    path.chmod(0o755)
    return path


@pytest.fixture
def behind(place: Place) -> Callable[[Path], Path]:
    """Where a path of the place really lies, on the client."""
    return lambda path: place.behind / path.relative_to(place.root)


@pytest.fixture
def probe(place: Place) -> Path:
    """The file by which `clock.tick` reads the filesystem's clock."""
    return place.root / ".probe"


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)
