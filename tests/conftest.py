"""What all outer tests share: servers, mounts, the choice of the driver, and the watch over what a test leaves behind."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator

import pytest
from harness import LIVE, Mounted, Server, Stage, Work, need
from harness.namespace import enter_private_namespace
from harness.waiting import until
from hypothesis import HealthCheck, settings

from fuse_gated.edge.libfuse import LACKS

# The same examples each time, however long a busy machine takes for them: what only chance finds is looked for by `make fuzz`,
# and with --hypothesis-profile=default.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--drivers", default="kernel,libfuse", help="drivers to run the outer tests on, with commas (default: both)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expected_log(pattern): lines of the product's stderr that are no fault in this test")
    config.addinivalue_line("markers", "beyond_libfuse(name): needs what fuse_gated.edge.libfuse.LACKS names; skipped on libfuse")
    if "libfuse" in _drivers(config) and os.geteuid() == 0:
        # Where it cannot be entered, the tests that need it say so.
        with contextlib.suppress(OSError):
            enter_private_namespace()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" in metafunc.fixturenames:
        drivers = _drivers(metafunc.config)
        if metafunc.definition.path.parent.name == "programs":
            # As the product comes: what strict does besides, tests/conformance and tests/service show.
            drivers = ["watched" if name == "kernel" else name for name in drivers]
        metafunc.parametrize("driver", drivers, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("beyond_libfuse")
        parameters = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        if mark is not None and "libfuse" in parameters:
            # Not `need`: the machine lacks nothing, and CI=true changes nothing about it.
            item.add_marker(pytest.mark.skip(reason=f"libfuse lacks {mark.args[0]}: {LACKS[mark.args[0]]}"))


def _drivers(config: pytest.Config) -> list[str]:
    chosen: str = config.getoption("--drivers")
    return [name for name in chosen.split(",") if name]


@pytest.fixture(autouse=True)
def watch(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test in which a program of ours told of a fault of its own. What is left behind fails in `Stage.close`."""
    yield
    if not LIVE:
        return
    expected = [re.compile(pattern) for mark in request.node.iter_markers("expected_log") for pattern in mark.args]
    lines = [line for program in LIVE for line in program.suspicious_lines()]
    LIVE[:] = [program for program in LIVE if program.process.returncode is None]
    unexpected = [line for line in lines if not any(pattern.search(line) for pattern in expected)]
    assert not unexpected, "the product's own log tells of a fault:\n" + "\n".join(unexpected)


def require_driver(driver: str) -> None:
    """Skip, or fail under CI, where this machine cannot mount through `driver`."""
    need("fuse")
    need(*(("root",) if driver != "libfuse" else ("a mount by an ordinary user", "fusermount3", "fusermount")))


@pytest.fixture
def stage(driver: str) -> Iterator[Stage]:
    """A stage for one test that wants servers or clients of its own."""
    require_driver(driver)
    with Stage(driver) as stage:
        yield stage


@pytest.fixture
def server(stage: Stage) -> Server:
    """A server of the test's own, with one tenant, acme, that may do everything."""
    return stage.server()


@pytest.fixture
def seen(driver: str) -> Callable[[Callable[[], bool]], None]:
    """Asserts what one side sees of what the other has just done: at once, or, where the product remembers and writes ahead, as
    soon as it has been told."""

    def seen(condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                return condition()
            return False

        if driver == "watched":
            until(holds, "what the other side did is seen")
        else:
            assert condition()

    return seen


@pytest.fixture(scope="module")
def mounted(driver: str) -> Iterator[Mounted]:
    """One mount for the module: mapped ownership, everything allowed."""
    require_driver(driver)
    with Stage(driver, shared=True) as stage:
        yield stage.mount()


@pytest.fixture(scope="module")
def passthrough(driver: str) -> Iterator[Mounted]:
    """One mount for the module: ownership passed through, every user, everything allowed, the client as root."""
    require_driver(driver)
    need("root")
    with Stage(driver, shared=True) as stage:
        yield stage.passthrough()


@pytest.fixture
def work(mounted: Mounted, request: pytest.FixtureRequest) -> Work:
    """A directory of the test's own in `mounted`, seen from both sides."""
    return mounted.work(re.sub(r"[^a-zA-Z0-9]+", "-", request.node.name).strip("-"))
