"""`make coverage`: the tests with branch coverage of every process, and a report that fails where a figure is missed.

    python tests/measuring/measure.py [--data DIR] [--report-only] [arguments for pytest]

Each process writes a file of its own: the daemon and what it forks, whoever they run as, the mount keeper, clients, libfuse's
process and its threads. With --data the files are kept in DIR, and added to those that are there: the figures of a run of
all tests in parts. A worker in its cage cannot write, so while FUSE_GATED_TEST_COVERAGE is set the harness runs servers with
`seccomp: false`, and skips what is about the cage.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Final

import coverage

TOP: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = TOP / "fuse_gated"
STARTUP: Final = Path(__file__).parent / "startup"

FIGURES: Final[dict[str, tuple[float, tuple[str, ...]]]] = {
    "errors, operations, paths": (100, ("errors.py", "operations.py", "paths.py")),
    "gate": (100, ("gate/*",)),
    "wire": (100, ("wire/*",)),
    "tree": (100, ("tree/*",)),
    "turnstile": (100, ("turnstile/*",)),
    "config": (100, ("config/*",)),
    "FUSE edges": (
        100,
        (
            "edge/fuse_*.py",
            "edge/libfuse.py",
            "edge/hosting.py",
            "edge/asking.py",
            "libfuse_host.py",
            "libfuse_mounter.py",
        ),
    ),
    "the package": (95, ("*",)),
}
"""Percent of the lines and branches that must have run, and of which files of the package."""


def main() -> int:
    """The exit status: 0 when the tests pass and every figure is reached."""
    parser = argparse.ArgumentParser(description="the tests with branch coverage of every process")
    parser.add_argument("--data", type=Path, help="keep the data here, and add to what is there")
    parser.add_argument("--report-only", action="store_true", help="run no tests")
    options, for_pytest = parser.parse_known_args()
    if options.report_only and not options.data:
        parser.error("--report-only needs --data")
    with contextlib.ExitStack() as stack:
        data = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuse-gated-coverage-")))
        data.mkdir(exist_ok=True)
        # Servers and clients run as nobody too.
        data.chmod(0o1777)
        status = 0 if options.report_only else run(data, for_pytest)
        missed = report(data)
    if missed:
        print("missed: " + ", ".join(missed))
    return status or bool(missed)


def run(data: Path, for_pytest: list[str]) -> int:
    """Run pytest, measured; its exit status."""
    path = [str(STARTUP), str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "FUSE_GATED_TEST_COVERAGE": "1",
        "COVERAGE_PROCESS_START": str(TOP / "pyproject.toml"),
        "COVERAGE_FILE": str(data.resolve() / "coverage"),
        "PYTHONPATH": os.pathsep.join(path),
    }
    # Measured, everything takes two to three times as long, and git's thousands of calls on libfuse run no line that the
    # conformance tests leave out.
    command = [sys.executable, "-m", "pytest", "--timeout=600", "--ignore=tests/programs", *for_pytest]
    return subprocess.run(command, cwd=TOP, env=environment).returncode


def report(data: Path) -> list[str]:
    """Print the figures; those that are missed, in words."""
    os.chdir(TOP)
    measured = coverage.Coverage(data_file=str(data.resolve() / "coverage"), config_file=str(TOP / "pyproject.toml"))
    measured.load()
    with contextlib.suppress(coverage.exceptions.NoDataError), warnings.catch_warnings():
        # A process that was killed as it wrote.
        warnings.filterwarnings("ignore", "Data file .* isn't a coverage data file")
        measured.combine(keep=False)
    measured.save()
    # Tests run copies of the package too, with a fault in each.
    measured.report(include=[str(PACKAGE / "*")])
    missed = []
    for name, (wanted, patterns) in FIGURES.items():
        reached = measured.report(include=[str(PACKAGE / pattern) for pattern in patterns], file=io.StringIO())
        print(f"{name:28} {reached:6.2f} % of {wanted:g} %")
        if reached < wanted:
            missed.append(f"{name} ({reached:.2f} %, not {wanted:g} %)")
    return missed


if __name__ == "__main__":
    sys.exit(main())
