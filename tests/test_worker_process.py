"""worker_process.py: what is done before a worker begins. The rest is shown by the tests in tests/service."""

import select
import socket
import ssl
import struct

import pytest

from fuse_gated.worker_process import secured


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_connection_that_is_reset_before_tls_begins(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), 20)
        ours, _ = listener.accept()
        peer.sendall(said)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        poll = select.poll()
        poll.register(ours, 0)
        assert poll.poll(20_000)
        ours.setblocking(False)
        with secured(ours, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as left:
            assert left.fileno() >= 0
            try:
                heard = left.recv(100)
            except OSError:
                heard = b""
        assert heard == b""
