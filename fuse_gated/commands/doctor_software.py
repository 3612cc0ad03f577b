"""Python and its packages, for `fuse-gatectl doctor`."""

import importlib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from typing import Final

from fuse_gated.commands.diagnosis import Check, fail, ok, worse
from fuse_gated.edge import seccomp
from fuse_gated.errors import OperatorError

_PYTHON: Final = (3, 11)
_REQUIRED: Final = {"msgspec": (0, 19), "websockets": (15,), "PyYAML": (6,)}
_OPTIONAL: Final = {
    "posix1e": ("python3-pylibacl", "pylibacl", "the kernel driver sets the mounts' ACLs with it"),
    "systemd.journal": ("python3-systemd", "systemd-python", "fuse-gatectl audit reads the journal with it"),
    "sdnotify": ("python3-sdnotify", "sdnotify", "systemd is told with it that the daemon is ready"),
}


def checks(*, is_root: bool) -> Iterator[Check]:
    """All checks of the software."""
    yield python(sys.version_info[:2])
    for name, oldest in _REQUIRED.items():
        yield package(name, oldest)
    yield libseccomp()
    yield libfuse(("fusepy", "fuse"), is_root=is_root)
    for module, (debian, pypi, purpose) in _OPTIONAL.items():
        yield optional(module, debian, pypi, purpose, fatal=is_root and module == "posix1e")


def python(version: tuple[int, int]) -> Check:
    if version < _PYTHON:
        return fail("Python", ".".join(map(str, version)), "3.11 is the oldest that will do")
    return ok("Python", platform.python_version())


def package(name: str, oldest: tuple[int, ...]) -> Check:
    """A package that nothing works without."""
    wanted = ".".join(map(str, oldest))
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return fail(name, "is not installed", f"install python3-{name.lower().removeprefix('py')}, {wanted} or later")
    if tuple(int(number) for number in re.findall(r"[0-9]+", version)) < oldest:
        return fail(name, version, f"{wanted} is the oldest that will do")
    return ok(name, version)


def libseccomp() -> Check:
    try:
        return ok("libseccomp", f"workers can be caged (module {seccomp.library().__name__})")
    except OperatorError as error:
        return fail("libseccomp", error.message, error.hint)


def libfuse(modules: tuple[str, ...], *, is_root: bool) -> Check:
    """libfuse 2 through fusepy, whose module is `fusepy` in Debian and `fuse` on PyPI; so is that of another package."""
    name = "libfuse 2"
    state = worse(fatal=not is_root)
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        except OSError as error:
            return Check(name, state, f"fusepy cannot load it: {error}", "install libfuse2 (Debian 13: libfuse2t64)")
        if hasattr(found, "FUSE") and hasattr(found, "Operations"):
            return ok(name, f"can be used through fusepy (module {module})")
    return Check(name, state, "fusepy is not installed", "the libfuse driver needs it: install python3-fusepy (pip: fusepy)")


def optional(module: str, debian: str, pypi: str, purpose: str, *, fatal: bool) -> Check:
    name = module.partition(".")[0]
    try:
        importlib.import_module(module)
    except ImportError:
        return Check(name, worse(fatal=fatal), "is not installed", f"{purpose}: install {debian} (pip: {pypi})")
    return ok(name, "is installed")
