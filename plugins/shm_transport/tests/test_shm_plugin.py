"""Describing the transports imports none of them, and what can be set is documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from themis_core.hooks import BackendPlugin, TransportPlugin
from themis_core.plugins import Registry, make
from themis_shm_transport.plugin import WorkerSettings
from themis_shm_transport.transport import SocketTransport


def test_describing_imports_no_transport() -> None:
    code = (
        "import themis_shm_transport.plugin as p, sys; p.themis_transports(); p.themis_backends(); "
        "assert not {'asyncio', 'ctypes', 'themis_core.protocol'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_setting_is_described() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in WorkerSettings.__struct_fields__:
        assert f"`{name}`" in readme


def test_both_names_are_transports_and_backends() -> None:
    registry = Registry()
    for name in ("unix", "shm"):
        found = registry.find("transports", name, TransportPlugin)
        assert isinstance(make(found, found.settings()), SocketTransport)
        backend = registry.find("backends", name, BackendPlugin)
        made = make(backend, WorkerSettings(path="/run/a b.sock"))
        assert made._where == f"{name}:///run/a%20b.sock"
