"""Certificates for tests, made with openssl(1)."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.needs import need


@dataclass(frozen=True)
class Pair:
    """PEM files: a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of its own, in `directory`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        need("openssl")
        self._directory = directory
        self.pair = self_signed(directory, name, "CA:TRUE")
        self.certificate = self.pair.certificate

    def issue(self, name: str, *, expired: bool = False, names: str = "DNS:localhost,IP:127.0.0.1") -> Pair:
        """A certificate for `names`. All may read its key, since a server drops its rights."""
        key, request, certificate = (self._directory / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        extensions = self._directory / f"{name}.ext"
        # Python 3.13 verifies strictly (VERIFY_X509_STRICT), and wants to know which key has signed.
        extensions.write_text(f"subjectAltName={names}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
        _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
                 "-keyout", key, "-out", request)  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.pair.certificate, "-CAkey", self.pair.key, "-CAcreateserial",
                 "-days", "-1" if expired else "2", "-extfile", extensions, "-out", certificate)  # fmt: skip
        key.chmod(0o644)
        return Pair(certificate, key)


def self_signed(directory: Path, name: str, constraint: str = "CA:FALSE") -> Pair:
    """A certificate that nobody but itself vouches for."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", f"basicConstraints=critical,{constraint}",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-addext", "keyUsage=critical,digitalSignature,keyCertSign", "-keyout", key, "-out", certificate)  # fmt: skip
    key.chmod(0o644)
    return Pair(certificate, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
