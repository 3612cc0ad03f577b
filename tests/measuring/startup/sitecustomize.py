"""What every Python process runs first while `make coverage` measures (see ../measure.py): no process and no thread of the
product goes unmeasured, and the product knows nothing of it."""

import importlib.abc
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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


if "COVERAGE_PROCESS_START" in os.environ:
    import coverage

    coverage.process_startup()
    sys.meta_path.insert(0, _Binding())
