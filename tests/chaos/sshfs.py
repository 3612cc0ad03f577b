"""The same cut under both: fuse-gated, and `sshfs -o reconnect`. A file is open and written to, once every few milliseconds."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from arena import NotRecovered, Prober, arena
from harness.proxy import Proxy
from harness.waiting import until

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from contestants import _INETD, SFTP_SERVER

PATIENCE: Final = 30.0
_BETWEEN: Final = 0.3


def beside(count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The seconds from a cut to the first operation that is answered right, and the errors before it."""
    with arena(reconnect=(1.0, 30.0)) as place:
        ours = _cuts(place.proxy, place.mount, count)
    with tempfile.TemporaryDirectory(prefix="fuse-gated-chaos-") as name:
        base = Path(name)
        for directory in ("export", "mount"):
            (base / directory).mkdir()
        with _sshfs(base / "export", base / "mount") as proxy:
            theirs = _cuts(proxy, base / "mount", count)
    for who, figures in (("fuse-gated", ours), ("sshfs -o reconnect", theirs)):
        say(f"{who:20} {figures}")
    failures = [f"{ours['errors']} errors"] if ours["errors"] else []
    return {"fuse-gated": ours, "sshfs": theirs, "ratio": ours["median"] / theirs["median"], "failures": failures}


def _cuts(proxy: Proxy, mount: Path, count: int) -> dict[str, Any]:
    times, errors, dead_handles = [], 0, 0
    for number in range(count):
        prober = Prober(mount / f"probe-{number}")
        try:
            time.sleep(_BETWEEN)
            cut_at = time.monotonic()
            proxy.cut()
            answered = None
            with contextlib.suppress(NotRecovered):
                answered = prober.answered(PATIENCE)
            errors += answered is None
            if answered is None:
                # The open file may be dead for ever; then a new one counts.
                answered = _first_answer(mount / f"again-{number}")
                dead_handles += prober.answered(PATIENCE) is None
            times.append(answered - cut_at)
        finally:
            prober.kill()
    figures = {"median": statistics.median(times), "worst": max(times)}
    return {**figures, "errors": errors, "dead_handles": dead_handles, "cuts": count}


def _first_answer(path: Path) -> float:
    def answered() -> float:
        with contextlib.suppress(OSError):
            path.write_text("there")
            return time.monotonic()
        return 0.0

    return until(answered, "sshfs answers again", PATIENCE)


@contextlib.contextmanager
def _sshfs(export: Path, mount: Path) -> Iterator[Proxy]:
    """As in the bench, with `reconnect`, and through a proxy."""
    listener = subprocess.Popen([sys.executable, "-c", _INETD, SFTP_SERVER], start_new_session=True, stdout=subprocess.PIPE)
    assert listener.stdout is not None
    proxy = Proxy(int(listener.stdout.readline()))
    options = f"reconnect,directport={proxy.port}"
    process = subprocess.Popen(["sshfs", "-f", "-o", options, f"127.0.0.1:{export}", str(mount)])
    try:
        until(lambda: os.path.ismount(mount), "sshfs is mounted")
        yield proxy
    finally:
        subprocess.run(["fusermount3", "-uz", str(mount)], check=False)
        proxy.close()
        process.terminate()
        process.wait(PATIENCE)
        os.killpg(listener.pid, 15)
        listener.wait(PATIENCE)
