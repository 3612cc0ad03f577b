"""Run in the place of the daemon, with its unit's sandbox and without a worker's own cage: tries what somebody would who has
taken it over. Prints a JSON object: what was tried, and the errno's name, or 'done'.
"""

import ctypes
import errno
import json
import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": {"keyctl": 250, "bpf": 321, "io_uring_setup": 425},
    "aarch64": {"keyctl": 219, "bpf": 280, "io_uring_setup": 425},
}
daemon, mount = int(sys.argv[1]), sys.argv[2]


def checked(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


def system(name: str, *arguments: int) -> None:
    checked(LIBC.syscall(NUMBERS[os.uname().machine][name], *(ctypes.c_long(number) for number in arguments)))


def run_what_was_written() -> None:
    program = Path("/tmp/program")
    program.write_bytes(Path("/usr/bin/true").read_bytes())
    program.chmod(0o755)
    subprocess.run([program], check=True)


def connect(kind: int, path: str) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(path)


ATTEMPTS = {
    # files of others
    "read the shadow file": lambda: os.open("/etc/shadow", os.O_RDONLY),
    "read the credentials' store": lambda: os.listdir("/etc/credstore"),
    "look into root's home": lambda: os.listdir("/root"),
    "look into a user's home": lambda: os.listdir("/home/somebody"),
    "read the client's token": lambda: os.open("/etc/token", os.O_RDONLY),
    "change the policy": lambda: os.open("/etc/fuse-gated/policy.yaml", os.O_WRONLY),
    "put a file beside the policy": lambda: os.open("/etc/fuse-gated/new", os.O_CREAT | os.O_WRONLY),
    "put a file into the runtime directory": lambda: os.open("/run/fuse-gated/new", os.O_CREAT | os.O_WRONLY),
    "take the control socket's place": lambda: os.unlink("/run/fuse-gated/control.sock"),
    "change a program": lambda: os.open("/usr/sbin/fuse-gated", os.O_WRONLY),
    "enter a mount": lambda: os.listdir(mount),
    "list the mounts": lambda: os.listdir("/run/fuse-gated/mnt"),
    "see others' temporary files": lambda: os.stat("/tmp/of-another"),
    # the kernel
    "open the FUSE device": lambda: os.open("/dev/fuse", os.O_RDWR),
    "mount": lambda: checked(LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
    "unmount": lambda: checked(LIBC.umount2(b"/tmp", 2)),
    "a namespace of its own": lambda: checked(LIBC.unshare(0x10000000)),
    "become root": lambda: os.setuid(0),
    "change the root": lambda: os.chroot("/"),
    "load a BPF program": lambda: system("bpf", 0, 0, 0),
    "use io_uring": lambda: system("io_uring_setup", 1, 0),
    "use the kernel's keys": lambda: system("keyctl", 0, -3, 0),
    "read the kernel's log": lambda: os.open("/dev/kmsg", os.O_RDONLY),
    "change a kernel setting": lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    "change a control group": lambda: os.open("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY),
    # processes
    "trace the daemon": lambda: checked(LIBC.ptrace(16, daemon, 0, 0)),
    "read the daemon's memory": lambda: checked(LIBC.process_vm_readv(daemon, None, 0, None, 0, 0)),
    "signal root's processes": lambda: os.kill(1, 0),
    "see root's processes": lambda: os.listdir("/proc/1"),
    "memory that runs": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "run what it wrote": run_what_was_written,
    "a real-time scheduler": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    # the network
    "a TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "an IPv6 socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "a raw packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "connect to the mount keeper": lambda: connect(socket.SOCK_SEQPACKET, "/run/fuse-gated/mountd.sock"),
    "connect to the system's bus": lambda: connect(socket.SOCK_STREAM, "/run/dbus/system_bus_socket"),
    "connect to systemd": lambda: connect(socket.SOCK_STREAM, "/run/systemd/private"),
}

outcome = {}
for name, attempt in ATTEMPTS.items():
    try:
        attempt()
    except OSError as error:
        outcome[name] = errno.errorcode.get(error.errno or 0, str(error))
    else:
        outcome[name] = "done"
outcome["capabilities"] = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line)
outcome["processes"] = len([name for name in os.listdir("/proc") if name.isdecimal()])
print("PROBE " + json.dumps(outcome))
