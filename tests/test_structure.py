"""The structure that the code keeps to: floors, pure insides, the tables that must be whole, and one place for the version."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import fuse_gated
from fuse_gated import operations as op
from fuse_gated.edge.fuse_requests import INIT, NOTIFY_REPLY, OPCODES
from fuse_gated.turnstile.table import TABLE
from fuse_gated.wire.tables import ARGUMENTS, RESULTS

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "fuse_gated"
MODULES = {
    ".".join(("fuse_gated", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

FLOORS = {
    "errors": 0, "operations": 0, "paths": 0, "gate": 1, "wire": 1, "tree": 1, "replica": 1,
    "turnstile": 2, "config": 2, "edge": 3,
}  # fmt: skip
HIGHEST = 4
FORBIDDEN = {
    "os", "socket", "select", "ssl", "asyncio", "time", "threading", "logging", "selectors", "subprocess", "multiprocessing",
    "signal", "io", "pathlib", "tempfile", "shutil", "posix", "fcntl", "ctypes", "mmap", "random", "concurrent",
}  # fmt: skip
"""What floors 0 to 2 do without: they have no clock, no descriptor and no thread."""
NOT_CALLED = {"open", "input", "print", "exec", "eval", "__import__", "breakpoint"}

OPERATIONS_OF_FUSE_H = """
    LOOKUP FORGET GETATTR SETATTR READLINK SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK OPEN READ WRITE STATFS RELEASE FSYNC
    SETXATTR GETXATTR LISTXATTR REMOVEXATTR FLUSH INIT OPENDIR READDIR RELEASEDIR FSYNCDIR GETLK SETLK SETLKW ACCESS CREATE
    INTERRUPT BMAP DESTROY IOCTL POLL NOTIFY_REPLY BATCH_FORGET FALLOCATE READDIRPLUS RENAME2 LSEEK COPY_FILE_RANGE
    SETUPMAPPING REMOVEMAPPING SYNCFS TMPFILE STATX COPY_FILE_RANGE_64 CUSE_INIT
"""
"""enum fuse_opcode of linux/fuse.h, protocol 7.45; tests/edge/test_fuse_layouts.py compares with this machine's own."""


def floor(module: str) -> int:
    """Of a module of ours, by its name."""
    parts = module.split(".")
    return FLOORS.get(parts[1], HIGHEST) if len(parts) > 1 else 0


def imports(path: Path) -> list[str]:
    """What a module imports, wherever in it; from our own package down to the module that it comes from."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found += [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module for alias in node.names
            ]
    return found


LOW = [module for module in MODULES if floor(module) <= 2]


def test_every_floor_is_there():
    assert {floor(module) for module in MODULES} == set(range(HIGHEST + 1))
    assert {module.split(".")[1] for module in MODULES if "." in module} >= set(FLOORS)
    assert len(LOW) > 30


@pytest.mark.parametrize("module", LOW)
def test_the_lower_floors_have_no_clock_no_descriptor_and_no_thread(module):
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not roots & FORBIDDEN


@pytest.mark.parametrize("module", LOW)
def test_the_lower_floors_open_no_file(module):
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & NOT_CALLED


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    for name in imports(MODULES[module]):
        if not name.startswith("fuse_gated."):
            continue
        own = floor(module) == floor(name) and (floor(module) in (0, HIGHEST) or module.split(".")[1] == name.split(".")[1])
        assert floor(name) < floor(module) or own, f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_in_one_sitting(module):
    lines = MODULES[module].read_text("utf-8").splitlines()
    longest = {"fuse_gated.wire.messages": 450, "fuse_gated.operations": 450}.get(module, 320)
    if floor(module) <= 2:
        assert len(lines) <= longest


# Tables that must be whole.


def test_every_opcode_has_its_place():
    ours = {name for name, _ in OPCODES.values()}
    assert ours | {"INIT", "NOTIFY_REPLY"} == set(OPERATIONS_OF_FUSE_H.split())
    assert not {INIT, NOTIFY_REPLY} & set(OPCODES)


def test_every_request_is_handled():
    """All but those that have no answer, or one of the driver's table."""
    assert set(TABLE) | {op.Forget, op.Interrupt, op.Destroy, op.Unserved} == set(op.Request.__subclasses__())
    assert all(kind.__struct_config__.frozen for kind in [*op.Request.__subclasses__(), *op.Answer.__subclasses__()])


def test_every_operation_of_the_wire_has_arguments_a_result_and_a_heading():
    text = (TOP / "docs" / "api" / "fuse-operations.md").read_text("utf-8")
    headings = re.findall(r"^### (\S+)$", text, re.MULTILINE)
    assert ARGUMENTS.keys() == RESULTS.keys()
    assert {name: headings.count(name) for name in ARGUMENTS} == dict.fromkeys(ARGUMENTS, 1)


# The version, and what is packed.


def test_the_version_stands_in_one_place():
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fuse_gated.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", fuse_gated.__version__)
    elsewhere = [
        str(path.relative_to(TOP))
        for path in [*PACKAGE.rglob("*.py"), *TOP.glob("*.toml")]
        if fuse_gated.__version__ in path.read_text("utf-8")
    ]
    assert elsewhere == ["fuse_gated/__init__.py"]


def test_every_package_is_packed():
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
