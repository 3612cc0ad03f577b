"""What the deployment guide has written into files: TLS by credentials, and a drop-in that opens the port."""

import re
from pathlib import Path
from typing import Any

import yaml

GUIDE = Path(__file__).parents[2] / "docs" / "production" / "deployment-guide.md"
SERVICE, SOCKET = "fuse-gated.service", "fuse-gated.socket"
CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
    "-addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:TRUE "
    "-addext keyUsage=critical,digitalSignature,keyCertSign -keyout /root/server.key -out /root/server.pem"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(heading: str, program: str) -> list[str]:
    """The commands of that program in a section's console blocks."""
    section = GUIDE.read_text("utf-8").partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^# ({program} .*)$", section, re.MULTILINE)


def test_tls_and_a_port_for_the_network(service: Any) -> None:
    (settings,) = (yaml.safe_load(block) for block in blocks("yaml"))
    (drop_in,) = (block for block in blocks("ini") if "ListenStream=" in block)
    assert "0.0.0.0:7433" in drop_in
    service.run("sh", "-c", CERTIFICATE)
    installs = commands("## 3. Let them in", "install")
    assert len(installs) == 3
    try:
        for command in installs:
            service.run("sh", "-euc", f"cd /root && {command}")
        service.write_settings(settings)
        service.run("systemctl", "stop", SERVICE, SOCKET)
        service.drop_in(SOCKET, drop_in)
        service.run("systemctl", "start", SOCKET)
        listening = service.run("ss", "-Hltn", "sport = :7433").stdout
        assert "0.0.0.0:7433" in listening
        client = service.client("web", "--ca", "/root/server.pem", server="wss://localhost:7433").mounted()
        service.path(f"{client.export}/hello").write_text("over TLS")
        assert service.run_as("reader", "cat", f"{client.mount}/hello").stdout == "over TLS"
        # fuse-gatectl and the proxy's socket are still there.
        assert "web" in service.run("fuse-gatectl", "sessions").stdout
        assert service.path("/run/fuse-gated/gate.sock").is_socket()
    finally:
        service.run("rm", "-rf", "/etc/credstore/fuse-gated.pem", "/etc/credstore/fuse-gated.key")
        service.run("systemctl", "stop", SERVICE, SOCKET, check=False)
