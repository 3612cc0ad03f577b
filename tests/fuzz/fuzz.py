"""`make fuzz`: what a stranger may send, mutated by coverage (atheris), each target for so many seconds.

| target | what is fuzzed | what must hold |
| --- | --- | --- |
| server | a worker: HTTP upgrade, WebSocket, login, hello, session | it ends with a reason and a record, and raises nothing |
| client | a client: HTTP answer, WebSocket, welcome, requests on real files | nothing outside the export is touched |
| framing | edge/frames.py, which reads whole messages past `websockets` | as `websockets` alone would |
| hello, from_server | the codec | ProtocolError, or frames |
| session | the turnstile: kernel, client, clock and operator in any order | each request is answered once, in a proper form |
| kernel | the parser of /dev/fuse's requests | a request, or struct.error or ValueError |
| policy, settings | the configuration's parsers, and the gate of what they take | faults with their places, or tenants |

A crash leaves its input in the corpus directory, and the exit status is not 0. See it again with --target NAME --replay FILE;
what was mended stays in found/NAME, and is tried with the seeds by the tests.
"""

import argparse
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = {"server": "visit", "client": "meeting", "framing": "framing"}
MODULES |= dict.fromkeys(("hello", "from_server", "session", "kernel", "policy", "settings"), "sans_io")
_NO_ATHERIS = """\
fuzz: atheris is missing, and pip has none for Python {python} on {machine}. It is built for x86-64 and
Python 3.11 to 3.14; elsewhere it needs clang with libFuzzer (github.com/google/atheris). Without it,
`fuzz.py --replay` tries every target on its seeds."""


def load(name: str) -> Callable[[bytes], None]:
    """The target of that name."""
    found: Callable[[bytes], None] = importlib.import_module(MODULES[name]).TARGETS[name]
    return found


def run_target(name: str, seconds: int, corpus: Path) -> None:
    """In a process of its own: atheris ends its process."""
    import atheris

    with atheris.instrument_imports(include=["fuse_gated", "websockets"]):
        target = load(name)
    flags = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=2048"]
    flags += [f"-artifact_prefix={corpus}/crash-{name}-", f"-dict={corpus / 'words'}"]
    atheris.Setup([sys.argv[0], *flags, str(corpus / name)], target)
    atheris.Fuzz()


def replay(name: str, files: list[Path]) -> None:
    """Each input once; without files the seeds, and what was found before."""
    from seeds import seeds

    examples = [file.read_bytes() for file in files]
    if not files:
        examples = [*seeds()[name], *(file.read_bytes() for file in sorted(HERE.glob(f"found/{name}/*")))]
    with tempfile.TemporaryDirectory(prefix="fuse-gated-fuzz-") as scratch:
        os.chmod(scratch, 0o711)
        tempfile.tempdir = scratch
        target = load(name)
        for example in examples:
            target(example)
    print(f"fuzz: {name}: {len(examples)} inputs, no fault")


def plant(corpus: Path) -> None:
    """Put the seeds and the words where atheris looks for them."""
    from seeds import seeds, words

    for name, examples in seeds().items():
        directory = corpus / name
        directory.mkdir(parents=True, exist_ok=True)
        for number, example in enumerate(examples):
            (directory / f"seed{number}").write_bytes(example)
    (corpus / "words").write_text("".join(f'"{word}"\n' for word in words()))


def sit_out(name: str, seconds: int, corpus: Path) -> bool:
    """Let one target run. False where it found a fault, which atheris has told already."""
    print(f"fuzz: {name} for {seconds} s", flush=True)
    options = ["--inside", "--target", name, "--seconds", str(seconds), "--corpus", str(corpus)]
    # atheris leaves no chance to clean up.
    scratch = Path(tempfile.mkdtemp(prefix="fuse-gated-fuzz-"))
    scratch.chmod(0o711)
    log = corpus / f"{name}.log"
    began = time.monotonic()
    try:
        with log.open("wb") as output:
            status = subprocess.run(
                [sys.executable, __file__, *options], env={**os.environ, "TMPDIR": str(scratch)}, stdout=output, stderr=output
            ).returncode
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    lines = log.read_text(errors="replace").splitlines()
    if status == 0:
        done = next((line for line in reversed(lines) if line.startswith("Done ")), "no figures")
        print(f"fuzz: {name}: no fault found ({done})")
        return True
    print(f"fuzz: {name}: FAULT after {time.monotonic() - began:.0f} s, exit {status}; the end of {log}:")
    print("\n".join(f"  {line[:200]}" for line in lines[-40:]))
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=66, help="for each target (%(default)s)")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"), help="kept from run to run (%(default)s)")
    parser.add_argument("--target", choices=MODULES, action="append", help="only this one (may be given again)")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", nargs="*", help="these inputs, once each and without atheris (none: the seeds)"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # The checkout, and the harness of its tests.
    sys.path[1:1] = [str(HERE.parents[1]), str(HERE.parent)]
    chosen = arguments.target or list(MODULES)
    if arguments.replay is not None:
        for name in chosen:
            replay(name, arguments.replay)
        return 0
    if arguments.inside:
        run_target(chosen[0], arguments.seconds, arguments.corpus)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(_NO_ATHERIS.format(python=platform.python_version(), machine=platform.machine()), file=sys.stderr)
        return 1
    plant(arguments.corpus)
    failed = [name for name in chosen if not sit_out(name, arguments.seconds, arguments.corpus)]
    if failed:
        print(f"fuzz: faults in {', '.join(failed)}; their inputs: {arguments.corpus}/crash-*", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
