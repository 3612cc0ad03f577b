"""What all programs of the load share: operations that are counted, and what went wrong with them.

An error ends a generation: its tree is given up, and a new one begun, so that one error is not told as many.
"""

import contextlib
import hashlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

SLOW: Final = 10.0
"""Seconds after which an operation counts as not in time."""
_AFTER_AN_ERROR: Final = 0.2


class Wrong(Exception):
    """Something is not as it must be."""


class Load:
    """What all programs share: counted operations, and what went wrong with them."""

    name = ""

    def __init__(self, mount: Path, export: Path, seed: int, stop: Path) -> None:
        self.mount, self.export = mount, export
        self.chance = random.Random(f"{seed} {self.name}")
        self._stop = stop
        self.operations = 0
        self.slow = 0
        self.slowest = 0.0
        self.errors: list[dict[str, Any]] = []
        self.wrong: list[dict[str, Any]] = []
        self.locked: list[str] = []
        """Of the files in `locks` those that can be locked on both sides."""
        self.expected: dict[str, dict[str, str]] = {}
        """What the end must look like: for each finished directory (relative to the mount) what each path in it is."""

    @property
    def stopped(self) -> bool:
        return self._stop.exists()

    def run(self) -> None:
        generation = 0
        while not self.stopped:
            generation += 1
            try:
                self.generation(generation)
            except OSError:
                # It has been noted where it happened.
                time.sleep(_AFTER_AN_ERROR)
            except Wrong as wrong:
                self.wrong.append({"what": str(wrong), "at": time.monotonic(), "program": self.name})
                time.sleep(_AFTER_AN_ERROR)

    def generation(self, number: int) -> None:
        """Work until told to stop. Raises OSError and Wrong."""
        raise NotImplementedError

    @contextlib.contextmanager
    def operation(self, name: str, path: object, single: bool = True) -> Iterator[None]:
        """Count what is done within, and note its error. What is not `single` is a program that does many."""
        begun = time.monotonic()
        try:
            yield
        except OSError as error:
            failure = {"operation": name, "path": str(path), "errno": error.errno, "text": str(error), "program": self.name}
            self.errors.append({**failure, "began": begun, "at": time.monotonic()})
            raise
        finally:
            took = time.monotonic() - begun
            self.operations += 1
            if single:
                self.slow += took > SLOW
                self.slowest = max(self.slowest, took)

    def do(self, name: str, path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
        with self.operation(name, path):
            return function(*arguments)

    def command(self, name: str, *arguments: object) -> str:
        """Run a program that must succeed; what it said."""
        with self.operation(name, " ".join(map(str, arguments[:4])), single=False):
            environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "LC_ALL": "C"}
            done = subprocess.run([str(one) for one in arguments], capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise OSError(0, f"{name} ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
        return done.stdout

    def pause(self) -> None:
        time.sleep(self.chance.uniform(0.0, 0.01))

    def must(self, holds: object, what: str) -> None:
        if not holds:
            raise Wrong(what)

    def report(self) -> dict[str, Any]:
        kept = ("name", "operations", "slow", "slowest", "errors", "wrong", "expected")
        return {name: getattr(self, name) for name in kept}


def told(content: bytes) -> str:
    """What `expected` says of a file."""
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}"
