import sys
from importlib import metadata
from pathlib import Path

import pytest

from fuse_gated.commands import doctor_software
from fuse_gated.commands.diagnosis import Check
from fuse_gated.edge import seccomp
from fuse_gated.errors import OperatorError


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which a test puts the modules that can be imported besides the installed ones."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_python() -> None:
    assert doctor_software.python((3, 10)).state == "fail"
    assert doctor_software.python((3, 11)).state == "ok"


def test_packages() -> None:
    version = metadata.version("msgspec")
    assert doctor_software.package("msgspec", (0, 19)) == Check("msgspec", "ok", version)
    assert doctor_software.package("msgspec", (99,)) == Check("msgspec", "fail", version, "99 is the oldest that will do")
    assert doctor_software.package("PyNoSuchThing", (1, 2)) == Check(
        "PyNoSuchThing", "fail", "is not installed", "install python3-nosuchthing, 1.2 or later"
    )


def test_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_software.libseccomp().state == "ok"

    def missing() -> None:
        raise OperatorError("no binding", "install it")

    monkeypatch.setattr(seccomp, "library", missing)
    assert doctor_software.libseccomp() == Check("libseccomp", "fail", "no binding", "install it")


def test_libfuse(modules: Path) -> None:
    (modules / "fusepy_whole.py").write_text("class FUSE: pass\nclass Operations: pass\n")
    (modules / "fusepy_without_library.py").write_text("raise OSError('Unable to find libfuse')\n")
    (modules / "fuse_of_another_package.py").write_text("class Fuse: pass\n")

    def state(*names: str, is_root: bool = False) -> tuple[str, str]:
        check = doctor_software.libfuse(names, is_root=is_root)
        return check.state, check.message

    assert state("no_such_module", "fusepy_whole") == ("ok", "can be used through fusepy (module fusepy_whole)")
    assert state("fuse_of_another_package", "fusepy_whole")[0] == "ok"
    assert state("no_such_module", "fuse_of_another_package") == ("fail", "fusepy is not installed")
    assert state("no_such_module", is_root=True) == ("warn", "fusepy is not installed")
    assert state("fusepy_without_library") == ("fail", "fusepy cannot load it: Unable to find libfuse")
    for name in ("fusepy_whole", "fuse_of_another_package"):
        del sys.modules[name]


def test_optional() -> None:
    assert doctor_software.optional("json", "python3-json", "json", "for nothing", fatal=True) == Check(
        "json", "ok", "is installed"
    )
    missing = "no_such_package.part"
    assert doctor_software.optional(missing, "python3-x", "x", "it is for this", fatal=False) == Check(
        "no_such_package", "warn", "is not installed", "it is for this: install python3-x (pip: x)"
    )
    assert doctor_software.optional(missing, "python3-x", "x", "it is for this", fatal=True).state == "fail"


def test_all() -> None:
    names = [check.name for check in doctor_software.checks(is_root=True)]
    assert names == ["Python", "msgspec", "websockets", "PyYAML", "libseccomp", "libfuse 2", "posix1e", "systemd", "sdnotify"]
