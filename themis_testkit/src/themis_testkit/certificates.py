"""Certificates for tests of TLS: of a server, of a client, and of a client that nobody knows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Certificates(NamedTuple):
    """PEM files; each one's key lies beside it, with the suffix `.key`."""

    ca: Path
    server: Path  # For `localhost` and 127.0.0.1.
    client: Path
    stranger: Path  # A client that another authority signed.


def make_certificates(folder: Path) -> Certificates:
    """Make them in `folder`, good for two days. Skips the test if there is no `openssl`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def run(*arguments: str) -> None:
        command = [str(openssl), *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)

    fresh = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for ca in ("ca", "other"):
        subject = ("-subj", f"/CN=Test {ca}", "-days", "2")
        run("req", "-x509", *fresh, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", *subject)
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        run("req", *fresh, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2")
        names = ("-extfile", "names") if name == "server" else ()
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing, *names)
    return Certificates(
        *(folder / f"{name}.pem" for name in ("ca", "server", "client", "stranger"))
    )
