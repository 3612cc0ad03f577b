"""debian/tests, run by autopkgtest on the packages as they were built, in a container of its own with systemd as PID 1."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml
from harness import need
from harness.roots import DEV, TOP

Engine = Any

COMPOSE: Final = TOP / "packaging/docker/compose.yaml"


def rights() -> list[str]:
    """Options of docker-run(1): what our compose file gives the image that has systemd."""
    service = yaml.safe_load(COMPOSE.read_text())["services"]["system"]
    options = [f"--device={device}" for device in service["devices"]]
    options += [f"--cap-add={right}" for right in service["cap_add"]]
    options += [f"--security-opt={option}" for option in service["security_opt"]]
    # /tmp is where autopkgtest keeps what outlives a reboot.
    options += [f"--tmpfs={path}" for path in service["tmpfs"] if path != "/tmp"]
    return [*options, f"--cgroupns={service['cgroup']}", "--stop-signal=SIGRTMIN+3"]


def test_autopkgtest(engine: Engine, docker_services: Any, repository: Path, tmp_path: Path) -> None:
    need("autopkgtest")
    subprocess.run([DEV / "copy-source.sh", tmp_path / "source"], check=True)
    packages = [str(path) for path in repository.glob("*.deb")]
    command = ["autopkgtest", "--no-built-binaries", *packages, f"{tmp_path}/source/"]
    server = ["--", "docker", "--init", "fuse-gated-testbed", "--", *rights()]
    done = subprocess.run([*command, *server], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # `make autopkgtest` shows it.
    print(done.stdout)
    assert done.returncode == 0
    assert re.search(r"^smoke +PASS$", done.stdout, re.MULTILINE)
