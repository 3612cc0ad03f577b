"""docs/examples/multi-tenant-setup: its commands as they stand, on a service as it is installed."""

import re
import shutil
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
EXAMPLE = TOP / "docs" / "examples" / "multi-tenant-setup"
BLOCK = re.compile(r"^```shell system\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_commands_do_what_is_said(service: Any) -> None:
    blocks = BLOCK.findall((EXAMPLE / "README.md").read_text("utf-8"))
    assert len(blocks) == 6
    service.write_policy((TOP / "etc/policy.yaml").read_text("utf-8"))
    shutil.copytree(EXAMPLE, service.path("/root/example"))
    said = []
    try:
        for block in blocks:
            done = service.run("sh", "-euc", f"cd /root/example\n{block}", check=False)
            said.append(done.stdout + done.stderr)
            assert done.returncode == 0, "\n".join([*said, service.run("journalctl", "--no-pager", "--lines=40").stdout])
        _tenants, sessions, result, tries, audit, left = said
        assert {name for name in ("acme", "globex") if name in sessions} == {"acme", "globex"}
        assert "15 main.txt" in result
        assert ".env" not in result
        assert tries.count("Permission denied") == 3
        assert tries.count("No such file or directory") == 1
        assert "/main.txt" in audit
        assert "/out/result" in audit
        assert ": whole: records 1.." in audit
        assert "acme" in left
        assert "globex" not in left
        assert service.path("/srv/globex/out/result").read_text().startswith("17 main.txt")
    finally:
        service.run("systemctl", "stop", "client-acme.service", "client-globex.service", check=False)
        service.run("systemctl", "reset-failed", check=False)
        for name in ("acme", "globex"):
            service.path(f"/etc/fuse-gated/policy.d/{name}.yaml").unlink(missing_ok=True)
            service.run("userdel", f"{name}-build", check=False)
        for path in ("/root/example", "/srv/acme", "/srv/globex"):
            shutil.rmtree(service.path(path), ignore_errors=True)
