"""What every Python process runs first while `make coverage` measures (see ../measure.py): no process and no thread of the
product goes unmeasured, and the product knows nothing of it."""

import atexit
import importlib.abc
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

_BINDINGS = ("fusepy", "fuse")


class _Binding(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds fusepy, and has its callbacks measured: libfuse's threads are not Python's, so nobody traces what they call."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name not in _BINDINGS:
            return None
        sys.meta_path.remove(self)
        try:
            found = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if found is None or found.loader is None:
            return None
        self._loader, found.loader = found.loader, self
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        binding = getattr(module, "FUSE", None)
        if hasattr(binding, "_wrapper"):
            binding._wrapper = staticmethod(_traced(binding._wrapper))


def _traced(wrapper: Callable[..., Any]) -> Callable[..., Any]:
    # A thread of libfuse's is a new one for Python with each callback, and making a tracer for each costs memory.
    idle: list[Any] = []

    def call(*arguments: Any, **keywords: Any) -> Any:
        hook = threading.gettrace()
        if hook is None or sys.gettrace() is not None:
            return wrapper(*arguments, **keywords)
        if idle:
            idle.pop().start()
        else:
            sys.settrace(hook)
        try:
            return wrapper(*arguments, **keywords)
        finally:
            tracer = sys.gettrace()
            sys.settrace(None)
            if hasattr(tracer, "start"):
                idle.append(tracer)

    return call


def _undisturbed(exit_: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
    def call(status: int) -> NoReturn:
        _block_signals()
        exit_(status)

    return call


def _block_signals() -> None:
    """To write what was measured takes a while, in which a process that has done all it had to would be ended by a SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


if "COVERAGE_PROCESS_START" in os.environ:
    import coverage

    coverage.process_startup()
    os._exit = _undisturbed(os._exit)
    # What is registered last runs first.
    atexit.register(_block_signals)
    sys.meta_path.insert(0, _Binding())
