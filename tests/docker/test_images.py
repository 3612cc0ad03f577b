"""The images that people build, and docs/fuse/docker-deployment.md: its commands as they stand."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness.certificates import Authority
from harness.roots import TOP
from harness.waiting import until

Container = Any
Engine = Any

PAGE: Final = TOP / "docs/fuse/docker-deployment.md"
DOCKERFILE: Final = TOP / "packaging/docker/Dockerfile"
MOUNT: Final = "/run/fuse-gated/mnt/acme/project"
GROUP: Final = "743"
ZEROS: Final = "0" * 64


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_nothing_is_fetched_but_debian_s_image() -> None:
    """Neither another image, by FROM, COPY or a line that names a frontend of BuildKit, nor a file."""
    text = DOCKERFILE.read_text()
    images = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert len(images) == text.count("\nFROM ")
    stages = {stage for _image, stage in images}
    assert {image for image, _stage in images} - stages == {"debian:trixie"}
    assert set(re.findall(r"from=(\w+)", text)) <= stages
    assert "# syntax" not in text
    assert "://" not in text


def test_the_page_s_table_has_the_rights_of_the_compose_file() -> None:
    compose = (TOP / "packaging/docker/compose.yaml").read_text()
    server = compose.partition("  server:\n")[2].partition("  # The same under systemd")[0]
    rights = re.search(r"cap_add: \[(.*)\]", server)
    assert rights is not None
    rows = re.findall(r"^\| `--cap-add (.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(re.findall(r"[A-Z_]+", " ".join(rows))) == sorted(rights[1].split(", "))


@pytest.fixture
def host(engine: Engine, docker_services: Any, authority: Authority, tmp_path: Path) -> Iterator[Engine]:
    """The engine's host, with a user's project and nothing of a server."""
    home = tmp_path / "home"
    (home / "project").mkdir(parents=True)
    (home / "project/hello").write_text("from the client\n")
    (home / "project/.env").write_text("PASSWORD=x\n")
    (home / ".fuse-gate-token").touch()
    pair = authority.issue("files", names="DNS:files.example.org")
    shutil.copy(pair.certificate, home / "server.pem")
    shutil.copy(pair.key, home / "server.key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        try:
            yield engine
        finally:
            engine.host("docker compose --profile '*' rm --stop --force server client system", check=False)
            engine.host("rm -rf /etc/fuse-gated; rmdir /run/fuse-gated/mnt /run/fuse-gated", check=False)


def test_the_page_s_commands_do_what_is_said(host: Engine) -> None:
    shell = blocks("shell system")
    assert len(shell) == 9
    build, token, check, client, use, audit, stop, system, end = shell
    policy, settings = blocks("yaml")
    host.host(build)
    made = host.host(token).stdout
    digest = re.search(r'sha256: "([0-9a-f]{64})"', made)
    secret = re.search(r"^fg_\S+$", made, re.MULTILINE)
    assert digest is not None
    assert secret is not None
    write(host, "/etc/fuse-gated/policy.yaml", policy.replace(ZEROS, digest[1]))
    write(host, "/etc/fuse-gated/fuse-gated.yaml", settings)
    console = "\n".join(blocks("console"))
    for command in re.findall(r"^# (install -m 640.*|chgrp 743.*)$", console, re.MULTILINE):
        host.host(f"cd ~; {command}")
    owned = "~/project ~/.fuse-gate-token"
    host.host(f"echo {secret[0]} >~/.fuse-gate-token; chown -R 1000:1000 {owned}; chmod 600 ~/.fuse-gate-token")
    assert "is right" in host.host(check).stdout
    host.host(client)

    said = host.host(use).stdout
    assert "acme" in said
    # On the host, in the server's container and in a third one; .env is hidden.
    assert said.splitlines().count("hello") == 3
    assert ".env" not in said
    others = (
        f"setpriv --reuid=1000 --clear-groups ls {MOUNT}",
        f"docker compose exec --user nobody server ls {MOUNT}",
        "docker run --rm --user 1000 --volume /run/fuse-gated/mnt:/mnt:rslave debian:trixie ls /mnt/acme/project",
    )
    for where in others:
        refused = host.host(where, check=False)
        assert (refused.returncode != 0, "Permission denied" in refused.stdout + refused.stderr) == (True, True), where
    host.host(f"setpriv --reuid=33 --regid=33 --clear-groups sh -c 'echo answer >{MOUNT}/answer'")
    assert host.host("cat ~/project/answer; stat -c %u ~/project/answer").stdout == "answer\n1000\n"
    told = host.host(audit).stdout
    assert "/answer" in told
    assert ": whole: records 1.." in told

    # Killed, it leaves a dead mount, which the next one takes away before the client comes back by itself.
    assert mounts(host) == [MOUNT]
    host.host("docker compose kill server")
    assert "not connected" in host.host(f"ls {MOUNT}", check=False).stderr
    host.host("docker compose up --detach --wait server")
    reading = f"setpriv --reuid=33 --regid=33 --clear-groups cat {MOUNT}/hello"
    until(lambda: host.host(reading, check=False).stdout == "from the client\n", "the client is back", 60)
    assert mounts(host) == [MOUNT]
    host.host(stop)
    assert mounts(host) == []
    assert host.host("ls /run/fuse-gated/mnt").stdout == ""

    said = host.host(system).stdout
    assert said.count("(listening)") == 2
    host.host(client)
    listing = f"docker compose exec --user www-data system ls -A {MOUNT}"
    until(lambda: host.host(listing, check=False).stdout == "answer\nhello\n", "the mount in the container", 30)
    assert "session" in host.host(end).stdout


def test_the_system_image_is_as_its_packages_are(smoke: Container) -> None:
    """What debian/tests runs on a machine, in the image that has systemd."""
    smoke.install("fuse-gated-client")
    assert smoke.run("/srv/smoke.sh").stdout.endswith("smoke: all is well\n")


def mounts(host: Engine) -> list[str]:
    """Where ours are on the host, dead ones too."""
    fields = [line.split() for line in host.host("cat /proc/self/mountinfo").stdout.splitlines()]
    return [words[4] for words in fields if words[4].startswith("/run/fuse-gated/mnt/")]


def write(host: Engine, path: str, text: str) -> None:
    host.host(f"cat >{path} <<'TEXT'\n{text}TEXT")
