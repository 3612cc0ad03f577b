"""Runs commands in the virtual machine for the tests outside it, over a virtio serial port: a line of JSON each way.

Asks: {"command": [...], "timeout": seconds}. Tells: {"status", "stdout", "stderr", "seconds"}, and first of all an empty object.
"""

import json
import os
import subprocess
import sys
import time

while not os.path.exists(sys.argv[1]):
    time.sleep(0.1)  # udev names it, perhaps after we are started.
port = open(sys.argv[1], "r+b", buffering=0)  # noqa: SIM115 (as long as the machine runs)
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}


def tell(message: dict[str, object]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(port.fileno(), data) :]


def run(command: list[str], timeout: float) -> dict[str, object]:
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/", timeout=timeout, errors="replace"
        )
        status, out, err = done.returncode, done.stdout, done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        status, out, err = 127, "", str(error)
    return {"status": status, "stdout": out, "stderr": err, "seconds": time.monotonic() - began}


tell({})
asked = b""
while True:
    piece = os.read(port.fileno(), 65536)
    if not piece:
        time.sleep(0.1)  # Nobody is connected outside.
    asked += piece
    while b"\n" in asked:
        line, _, asked = asked.partition(b"\n")
        tell(run(**json.loads(line)))
