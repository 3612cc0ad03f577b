import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuse_gated.commands import doctor_machine
from fuse_gated.commands.diagnosis import Check
from fuse_gated.commands.doctor_machine import Machine, checks
from fuse_gated.edge.fuse_probe import Offer
from fuse_gated.errors import KernelError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and setuid files")
RESENDS = 1 << 39


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine of which little is there: what a test needs it puts there."""
    return Machine(root=tmp_path, release="6.12.1-amd64", is_root=True, offer=Offer(7, 41, RESENDS), path=str(tmp_path / "bin"))


def put(machine: Machine, name: str, text: str = "") -> Path:
    path = machine.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found(machine: Machine, name: str, **changes: Any) -> Check:
    (check,) = [check for check in checks(msgspec.structs.replace(machine, **changes)) if check.name == name]
    assert bool(check.advice) == (check.state != "ok")
    return check


def test_kernel(machine: Machine) -> None:
    assert found(machine, "kernel") == Check("kernel", "ok", "Linux 6.12.1-amd64")
    assert found(machine, "kernel", release="5.6").state == "ok"
    assert found(machine, "kernel", release="5.3.18").state == "fail"
    assert found(machine, "kernel", release="unheard of").state == "fail"


def test_protocol(machine: Machine) -> None:
    assert found(machine, "FUSE protocol") == Check("FUSE protocol", "ok", "7.41")
    assert found(machine, "FUSE protocol", offer=Offer(7, 31, 0)).state == "ok"
    assert found(machine, "FUSE protocol", offer=Offer(7, 99, 0)).message == "7.99, used as 7.45"
    assert found(machine, "FUSE protocol", offer=Offer(8, 1, 0)).message == "8.1, used as 7.45"
    assert found(machine, "FUSE protocol", offer=Offer(7, 30, 0)).state == "fail"
    assert found(machine, "FUSE protocol", offer=KernelError("not allowed")).state == "warn"


def test_resending(machine: Machine) -> None:
    assert found(machine, "re-sending").state == "ok"
    assert found(machine, "re-sending", offer=Offer(7, 41, 0)).state == "warn"
    assert found(machine, "re-sending", offer=KernelError("not allowed")).state == "ok"
    assert found(machine, "re-sending", offer=KernelError("not allowed"), release="6.8.0").state == "warn"


def test_filesystem(machine: Machine) -> None:
    assert found(machine, "fuse module").state == "warn"
    put(machine, "proc/filesystems", "nodev\tfusectl\n\next4\n")
    assert found(machine, "fuse module").state == "fail"
    put(machine, "proc/filesystems", "nodev\tfuse\n")
    assert found(machine, "fuse module").state == "ok"


@as_root
def test_device(machine: Machine) -> None:
    assert found(machine, "/dev/fuse") == Check(
        "/dev/fuse", "fail", "No such file or directory", "modprobe fuse; a container needs --device /dev/fuse"
    )
    put(machine, "dev/fuse")
    assert found(machine, "/dev/fuse").message == "is no character device"
    (machine.root / "dev/fuse").unlink()
    os.mknod(machine.root / "dev/fuse", 0o20600, os.makedev(1, 3))
    assert found(machine, "/dev/fuse").message == "only root may open it (mode 0600)"
    (machine.root / "dev/fuse").chmod(0o666)
    assert found(machine, "/dev/fuse").state == "ok"


@as_root
def test_a_device_that_we_may_not_open(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev/fuse", 0o20600, os.makedev(1, 3))
    tmp_path.chmod(0o711)
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        child = os.fork()
        if child == 0:
            # os.access goes by the real uid, so a process of its own gives it up.
            try:
                os.setuid(65534)
                check = found(machine, "/dev/fuse", root=Path(f"/proc/self/fd/{descriptor}"))
                os._exit(0 if check.message == "we may not open it (mode 0600)" else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        os.close(descriptor)


@as_root
def test_fusermount3(machine: Machine) -> None:
    assert found(machine, "fusermount3").state == "warn"
    assert found(machine, "fusermount3", is_root=False).state == "fail"
    program = put(machine, "bin/fusermount3")
    program.chmod(0o755)
    assert found(machine, "fusermount3").message == f"{program} is not setuid root"
    program.chmod(0o4755)
    assert found(machine, "fusermount3") == Check(
        "fusermount3",
        "warn",
        "there is no fusermount beside it",
        f"libfuse 2 runs it by that name: ln -s {program} {machine.root}/bin/fusermount",
    )
    (machine.root / "bin/fusermount").symlink_to("fusermount3")
    assert found(machine, "fusermount3").message == "there is no /etc/mtab, without which it takes no mount away"
    put(machine, "etc/mtab")
    assert found(machine, "fusermount3") == Check("fusermount3", "ok", f"{program}, setuid root")
    os.chown(program, 4242, 0)
    assert found(machine, "fusermount3", is_root=False).state == "fail"


def test_allow_other(machine: Machine) -> None:
    assert found(machine, "user_allow_other").state == "ok"
    assert found(machine, "user_allow_other", is_root=False).state == "warn"
    put(machine, "etc/fuse.conf", "#user_allow_other\nmount_max = 1000\n")
    assert found(machine, "user_allow_other", is_root=False).state == "warn"
    put(machine, "etc/fuse.conf", "user_allow_other\n")
    assert found(machine, "user_allow_other", is_root=False).state == "ok"


def test_openat2(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(machine, "openat2").state == "ok"

    def refused(_directory: int, _path: bytes, *, must_be_directory: bool) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(doctor_machine, "openat2", refused)
    assert found(machine, "openat2").message == "Function not implemented"


def test_journal(machine: Machine) -> None:
    assert found(machine, "journal").state == "warn"
    path = put(machine, "run/systemd/journal/socket")
    assert found(machine, "journal").state == "warn"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        descriptor = os.open(path.parent, os.O_PATH)
        journal.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
        assert found(machine, "journal").state == "ok"


def test_timeouts(machine: Machine) -> None:
    assert not [check for check in checks(machine) if check.name.startswith("fs.fuse")]
    put(machine, "proc/sys/fs/fuse/default_request_timeout", "0\n")
    put(machine, "proc/sys/fs/fuse/max_request_timeout", "20\n")
    assert found(machine, "fs.fuse.default_request_timeout").state == "ok"
    assert found(machine, "fs.fuse.max_request_timeout") == Check(
        "fs.fuse.max_request_timeout",
        "warn",
        "20 s, then the kernel aborts the whole mount",
        "sysctl fs.fuse.max_request_timeout=0",
    )
    put(machine, "proc/sys/fs/fuse/max_request_timeout", "what\n")
    assert not [check for check in checks(machine) if check.name == "fs.fuse.max_request_timeout"]


def test_apparmor(machine: Machine) -> None:
    assert found(machine, "AppArmor").state == "ok"
    put(machine, "etc/apparmor.d/fusermount3", "profile fusermount3 {}")
    assert found(machine, "AppArmor").state == "warn"
    put(machine, "sys/kernel/security/apparmor/profiles", "firefox (enforce)\n")
    assert found(machine, "AppArmor").state == "ok"
    put(machine, "sys/kernel/security/apparmor/profiles", "fusermount3 (enforce)\n")
    assert found(machine, "AppArmor").state == "warn"
    put(machine, "etc/apparmor.d/local/fusermount3", "# nothing of ours\n")
    assert found(machine, "AppArmor").state == "warn"
    put(machine, "etc/apparmor.d/local/fusermount3", "mount fstype=fuse.* -> /run/fuse-gated/mnt/**,\n")
    assert found(machine, "AppArmor") == Check("AppArmor", "ok", "the profile of fusermount3 has our rule")
