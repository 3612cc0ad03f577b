"""What the link itself allows: the same bytes by `tar` through a bare TCP connection, and how long one byte goes forth and back.

`transfers.py give|take|echo ARGUMENTS` is the end on the client's side of the link: it says its port and serves one connection.
The other end is here, in a process on the server's side.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

from link import Link


def pulled(link: Link, directory: Path, into: Path, cap: float) -> float:
    """Seconds until all of the client's `directory` has arrived at the server, in the file `into`."""
    return _served(link, ["give", str(directory)], ["pull", str(into)], cap)


def pushed(link: Link, directory: Path, into: Path, cap: float) -> float:
    """Seconds until the client has unpacked in `into` all of the server's `directory`, and has said so."""
    return _served(link, ["take", str(into)], ["push", str(directory)], cap)


def round_trip(link: Link, times: int, cap: float) -> float:
    """Seconds for one byte there and back, on average."""
    return _served(link, ["echo"], ["ask", str(times)], cap) / times


def _served(link: Link, there: list[str], here: list[str], cap: float) -> float:
    end = subprocess.Popen([*link.client, sys.executable, __file__, *there], stdout=subprocess.PIPE)
    try:
        assert end.stdout is not None
        port = end.stdout.readline().decode().strip()
        command = [*link.server, sys.executable, __file__, *here, link.client_address, port]
        return float(subprocess.run(command, check=True, capture_output=True, timeout=cap, text=True).stdout)
    finally:
        end.kill()
        end.communicate()


def _serve(kind: str, *arguments: str) -> None:
    listener = socket.create_server(("0.0.0.0", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind == "give":
        subprocess.run(["tar", "-C", arguments[0], "-cf", "-", "."], stdout=connection, check=True)
    elif kind == "take":
        subprocess.run(["tar", "-C", arguments[0], "-xf", "-"], stdin=connection, check=True)
        connection.send(b"!")
    else:
        while byte := connection.recv(1):
            connection.send(byte)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)


def _use(kind: str, argument: str, address: str, port: str) -> None:
    started = time.perf_counter()
    with socket.create_connection((address, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if kind == "pull":
            with open(argument, "wb") as file:
                while data := connection.recv(2**20):
                    file.write(data)
        elif kind == "push":
            subprocess.run(["tar", "-C", argument, "-cf", "-", "."], stdout=connection, check=True)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        else:
            started = time.perf_counter()
            for _ in range(int(argument)):
                connection.send(b"?")
                connection.recv(1)
        print(time.perf_counter() - started)


if __name__ == "__main__":
    if sys.argv[1] in ("give", "take", "echo"):
        _serve(*sys.argv[1:])
    else:
        _use(*sys.argv[1:])
