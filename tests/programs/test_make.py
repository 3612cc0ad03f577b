"""A C project built with make -j on the mount."""

import os
import subprocess
from pathlib import Path

import pytest
from harness import Work, need

MODULES = 16

MAKEFILE = f"""
CFLAGS = -O0 -Wall
OBJECTS = $(patsubst %,module%.o,$(shell seq 0 {MODULES - 1}))
program: main.o libmodules.a
\t$(CC) -o $@ main.o -L. -lmodules
libmodules.a: $(OBJECTS)
\t$(AR) rcs $@ $^
%.o: %.c modules.h
\t$(CC) $(CFLAGS) -c -o $@ $<
clean:
\trm -f *.o *.a program
"""


@pytest.fixture
def project(work: Work) -> Path:
    need("make", "gcc", "ar", "seq")
    root = work.path / "project"
    root.mkdir()
    (root / "Makefile").write_text(MAKEFILE)
    (root / "modules.h").write_text("".join(f"int module{number}(void);\n" for number in range(MODULES)))
    for number in range(MODULES):
        (root / f"module{number}.c").write_text(f'#include "modules.h"\nint module{number}(void) {{ return {number}; }}\n')
    calls = " + ".join(f"module{number}()" for number in range(MODULES))
    (root / "main.c").write_text(
        f'#include <stdio.h>\n#include "modules.h"\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    return root


def make(root: Path, *arguments: str) -> str:
    done = subprocess.run(["make", "-j4", "CC=gcc", *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Clock skew" not in done.stderr
    assert "in the future" not in done.stderr
    return done.stdout


def test_builds_runs_and_builds_only_what_changed(project: Path) -> None:
    make(project)
    assert subprocess.run([project / "program"], capture_output=True, text=True, check=True).stdout == f"{sum(range(MODULES))}\n"
    assert "up to date" in make(project)
    source = project / "module3.c"
    source.write_text(source.read_text().replace("return 3", "return 1003"))
    # make compares times; the object is made older, rather than the clock waited for.
    os.utime(project / "module3.o", (1, 1))
    told = make(project)
    assert told.count(" -c ") == 1
    assert (
        subprocess.run([project / "program"], capture_output=True, text=True, check=True).stdout
        == f"{sum(range(MODULES)) + 1000}\n"
    )
    make(project, "clean")
    assert not list(project.glob("*.o"))


def test_the_program_also_runs_on_the_client(project: Path, work: Work) -> None:
    make(project)
    program = work.behind / "project" / "program"
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == f"{sum(range(MODULES))}\n"
