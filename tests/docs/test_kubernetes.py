"""The manifests for Kubernetes: right by the API's own schemas, and what they lean on of the kernel runs as they have it.

There is no cluster here. What a kubelet would make of them is made by hand: a node's directory that is shared, a container
whose mounts in it leave, and another that gets them.
"""

import importlib.util
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import MEASURING, Program, Server, Stage, need, need_that, processes_marked
from harness.namespace import inside
from harness.parts import Parts
from harness.stage import Export
from harness.waiting import until

from fuse_gated.commands import fuse_gatectl
from fuse_gated.config.policy_file import parse_policy
from fuse_gated.config.settings_file import parse_settings
from fuse_gated.edge import etc, health
from fuse_gated.errors import ConfigurationError

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "kubernetes-deployment"
FILES = sorted(EXAMPLE.glob("*.yaml"))
OBJECTS: list[dict[str, Any]] = [found for file in FILES for found in yaml.safe_load_all(file.read_text("utf-8"))]
WWW_DATA = 33
TENANT = {"users": ["www-data"], "rules": [{"path": "/**", "allow": ["read", "write", "delete"]}], "outage": {"grace": "60s"}}


def the(kind: str, name: str) -> dict[str, Any]:
    """The object of that kind and name."""
    (found,) = (one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pod(kind: str, name: str) -> dict[str, Any]:
    """What its pods are."""
    spec: dict[str, Any] = the(kind, name)["spec"]["template"]["spec"]
    return spec


SERVER = pod("StatefulSet", "fuse-gated")
BUILD = pod("Deployment", "build")


def volume_mount(container: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in container["volumeMounts"] if one["name"] == name)
    return found


# By the API's schemas.


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_the_api_would_take_them(version: str) -> None:
    """Strictly: with a word that it does not know, it does not."""
    need_that(importlib.util.find_spec("kubernetes_validate"), "kubernetes-validate is not installed")
    import kubernetes_validate

    for one in OBJECTS:
        kubernetes_validate.validate(one, version, strict=True)
    wrong = {**the("Service", "fuse-gated"), "spec": {"selektor": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_what_the_schemas_do_not_say() -> None:
    """Rules of the API server's own, and names that must be the same in two places."""
    (server,), (build,) = SERVER["containers"], BUILD["containers"]
    assert volume_mount(server, "run")["mountPropagation"] == "Bidirectional"
    assert server["securityContext"]["privileged"], "the API takes Bidirectional in no other container"
    assert volume_mount(build, "exports")["mountPropagation"] == "HostToContainer"
    assert the("Namespace", "fuse-gated")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"

    (run,) = (volume["hostPath"] for volume in SERVER["volumes"] if volume["name"] == "run")
    assert volume_mount(server, "run")["mountPath"] == run["path"] == "/run/fuse-gated"
    assert the("PersistentVolume", "fuse-gated-acme")["spec"]["hostPath"]["path"] == f"{run['path']}/mnt"

    labels = the("StatefulSet", "fuse-gated")["spec"]["template"]["metadata"]["labels"]
    selectors = [the("Service", name)["spec"]["selector"] for name in ("fuse-gated", "fuse-gated-pods")]
    selectors += [the("StatefulSet", "fuse-gated")["spec"]["selector"]["matchLabels"]]
    selectors += [the("PodDisruptionBudget", "fuse-gated")["spec"]["selector"]["matchLabels"]]
    selectors += [the("NetworkPolicy", "fuse-gated")["spec"]["podSelector"]["matchLabels"]]
    for term in ("podAffinity", "podAntiAffinity"):
        for spec in (SERVER, BUILD):
            for wanted in spec["affinity"].get(term, {}).get("requiredDuringSchedulingIgnoredDuringExecution", []):
                if wanted["labelSelector"]["matchLabels"] != {"app.kubernetes.io/name": "build"}:
                    selectors.append(wanted["labelSelector"]["matchLabels"])
    assert len(selectors) == 7
    assert all(selector == labels for selector in selectors)


def test_the_probes_and_the_hook_are_what_there_is() -> None:
    (server,) = SERVER["containers"]
    assert server["readinessProbe"]["httpGet"]["path"] == health.PATH
    assert "tls:" in the("ConfigMap", "fuse-gated")["data"]["fuse-gated.yaml"]
    assert server["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    program, *arguments = server["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "fuse-gatectl"
    assert fuse_gatectl.parser().parse_args(arguments).move is True


def test_the_configuration_is_right() -> None:
    settings = parse_settings(the("ConfigMap", "fuse-gated")["data"]["fuse-gated.yaml"].encode(), "fuse-gated.yaml")
    assert settings.tls is not None
    (tenant,) = parse_policy([("policy.yaml", the("Secret", "fuse-gated-policy")["stringData"]["policy.yaml"].encode())])
    assert tenant.users == ("www-data",)
    assert BUILD["securityContext"]["runAsUser"] == WWW_DATA
    # What one session takes is in docs/production/scaling.md.
    (server,) = SERVER["containers"]
    assert server["resources"]["limits"]["memory"] == "2Gi"
    assert 40 + settings.max_sessions * 9 < 0.75 * 2048


def test_the_first_container_makes_of_it_what_the_server_takes(tmp_path: Path) -> None:
    """A kubelet makes a directory with mode 0777, and in it symbolic links to what came last."""
    need("root")
    config, prepared = tmp_path / "config", tmp_path / "prepared"
    came = config / "..2026_11_22_12_00_00.1"
    came.mkdir(parents=True)
    config.chmod(0o777)
    (config / "..data").symlink_to(came.name)
    for name, text in (
        ("fuse-gated.yaml", the("ConfigMap", "fuse-gated")["data"]["fuse-gated.yaml"]),
        ("policy.yaml", the("Secret", "fuse-gated-policy")["stringData"]["policy.yaml"]),
    ):
        (came / name).write_text(text)
        (came / name).chmod(0o400)
        (config / name).symlink_to(f"..data/{name}")
    with pytest.raises(ConfigurationError) as refused:
        etc.read_settings(config)
    assert "can be written by others" in refused.value.faults[0]
    prepared.mkdir()
    prepared.chmod(0o777)
    (container,) = SERVER["initContainers"]
    (script,) = container["args"]
    changes = {"/config/": f"{config}/", "/prepared/": f"{prepared}/", "-g fuse-gated": "-g nogroup"}
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    subprocess.run([*container["command"], script], check=True)
    assert etc.read_settings(prepared / "etc").max_sessions == 150
    assert [tenant.name for tenant in etc.read_policy(prepared / "etc")] == ["acme"]
    for file in (prepared / "etc").iterdir():
        assert file.stat().st_mode & 0o777 == 0o640


# What runs.


class Node:
    """A machine with a directory that is shared, and two containers: whose mounts in it leave, and who gets them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shared = f"mount --bind {directory} {directory} && mount --make-shared {directory}"
        self._all = [self._hold("unshare", "--mount", "--propagation", "private", script=shared)]
        # As a runtime has it: nothing but the volume is shared, and the image is read-only.
        closed = "mount --make-private / && mount -o remount,bind,ro /"
        self.mounter = self._hold(*self._in_node("unchanged"), script=closed)
        self.workload = self._hold(*self._in_node("slave"), script=":")
        self._all += [self.mounter, self.workload]

    def _in_node(self, propagation: str) -> list[str]:
        enter = ["nsenter", f"--mount=/proc/{self._all[0].pid}/ns/mnt"]
        return [*enter, "unshare", "--mount", "--propagation", propagation]

    @staticmethod
    def _hold(*command: str, script: str) -> subprocess.Popen[bytes]:
        """A process in a new namespace, for as long as its standard input is open."""
        process = subprocess.Popen(
            [*command, "sh", "-ec", f"{script}\necho made\nread -r _ || :"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        return process

    def sees(self, path: Path) -> bool:
        """Whether the workload has that mount, by its own probe; it asks nobody."""
        (container,) = BUILD["containers"]
        *probe, table = container["readinessProbe"]["exec"]["command"]
        probe = [word.replace("/mnt/acme/project", str(path)) for word in probe]
        assert str(path) in " ".join(probe)
        return subprocess.run([*probe, table.replace("self", str(self.workload.pid))], check=False).returncode == 0

    def workload_runs(self, *command: str, user: int = WWW_DATA) -> subprocess.Popen[str]:
        """A program of the workload's, as its user."""
        somebody = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
        return subprocess.Popen(
            ["nsenter", f"--mount=/proc/{self.workload.pid}/ns/mnt", *somebody, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip

    def says(self, *command: str, user: int = WWW_DATA) -> str:
        """What a program of the workload's says on either output."""
        return "".join(self.workload_runs(*command, user=user).communicate(timeout=60))

    def close(self) -> None:
        for process in reversed(self._all):
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


class Cluster:
    """The server in the one container, started as its image has it, a client outside."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.node = Node(stage.directory)
        try:
            with inside(self.node.mounter.pid):
                self.server: Server = stage.server({"tenants": {"acme": TENANT}})
        except BaseException:
            self.node.close()
            raise
        self.client: Export = stage.export(self.server, name="project", options=["--reconnect-max", "1"])
        self.client.directory.chmod(0o755)
        (self.client.directory / "hello").write_text("from the client\n")
        self.mount = self.client.mount_path()

    def is_mounted(self) -> bool:
        return self.node.sees(self.mount)

    def start_again(self) -> None:
        """The next container of the pod: the node, and its directory, are the same."""
        arguments = ["--etc", str(self.server.etc), "--runtime", str(self.server.runtime)]
        arguments += ["--listen", f"127.0.0.1:{self.server.port}"]
        self.server.program.stdout.keep()
        self.server.program.stderr.keep()
        with inside(self.node.mounter.pid):
            self.server.program = Program(
                "again", "fuse_gated.commands.fuse_gated", arguments, self.stage.directory, self.server.mark
            )


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    need("root", "fuse", "unshare", "nsenter", "setpriv")
    if "kernel" not in request.config.getoption("--drivers"):
        pytest.skip("run with --drivers kernel")
    if MEASURING:
        pytest.skip("what is measured cannot be written down in a read-only image")
    with Stage("kernel") as stage:
        cluster = Cluster(stage)
        try:
            yield cluster
        finally:
            cluster.client.stop()
            cluster.server.stop()
            cluster.node.close()


def test_the_workload_sees_what_the_mounter_mounts(cluster: Cluster) -> None:
    node, mount = cluster.node, cluster.mount
    until(cluster.is_mounted, "the mount is there")
    assert node.says("cat", f"{mount}/hello") == "from the client\n"
    assert "Permission denied" in node.says("cat", f"{mount}/hello", user=12345)
    assert not os.path.ismount(mount), "it is mounted on the node alone, not here"

    assert fuse_gatectl.main(["--runtime", str(cluster.server.runtime), "drain", "--move"]) == 0
    until(lambda: not cluster.is_mounted(), "the mount is gone")
    assert cluster.client.program.process.poll() is None, "the client goes on trying"
    assert fuse_gatectl.main(["--runtime", str(cluster.server.runtime), "drain", "--undo"]) == 0
    until(cluster.is_mounted, "the client is back, and so is the mount")
    cluster.server.stop()
    assert not cluster.is_mounted()


WRITER = """
exec 3>>"$1"
number=0
while true; do
  number=$((number + 1))
  echo $number >&3
  echo $number
  read -r _ || break
done
"""


def test_it_survives_the_daemon(cluster: Cluster) -> None:
    """A program of the workload's has a file open all the time, and notices nothing."""
    cluster.client.directory.chmod(0o777)
    path = cluster.mount / "lines"
    writer = cluster.node.workload_runs("sh", "-ec", WRITER, "sh", str(path))
    assert writer.stdin is not None
    assert writer.stdout is not None
    parts = Parts(cluster.server)
    written = 0
    for which in ("daemon", "keeper", "worker", "daemon"):
        for _ in range(20):
            written += 1
            assert writer.stdout.readline() == f"{written}\n", writer.communicate()[1]
            writer.stdin.write("on\n")
            writer.stdin.flush()
            if written % 20 == 10:
                os.kill(getattr(parts, which), signal.SIGKILL)
        assert cluster.is_mounted()
    written += 1
    assert writer.stdout.readline() == f"{written}\n"
    assert writer.communicate()[1] == ""
    assert (cluster.client.directory / "lines").read_text().split() == [str(number) for number in range(1, written + 1)]


def test_what_a_killed_container_leaves_the_next_one_takes_away(cluster: Cluster) -> None:
    """Killed all at once, as when its memory is at an end: the node keeps a dead mount until the server runs again."""
    node, mount = cluster.node, cluster.mount
    until(cluster.is_mounted, "the mount is there")
    cluster.server.program.awaited = True
    # No one of them is to see another one end.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in processes_marked(cluster.server.mark):
            os.kill(pid, number)
    cluster.server.program.process.wait(30)
    until(lambda: not processes_marked(cluster.server.mark), "all are gone")
    assert cluster.is_mounted()
    assert "Transport endpoint is not connected" in node.says("cat", f"{mount}/hello")
    cluster.start_again()
    until(lambda: node.says("cat", f"{mount}/hello") == "from the client\n", "the client is back, and the mount a new one")


def test_no_line_is_too_long() -> None:
    for file in FILES:
        for line in file.read_text("utf-8").splitlines():
            assert len(line) <= 132, f"{file.name}: {shlex.quote(line)}"
