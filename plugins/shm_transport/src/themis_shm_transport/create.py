"""The factories that the descriptors name."""

from __future__ import annotations

from urllib.parse import quote

from themis_core.contracts import Backend, Transport
from themis_core.hooks import NoSettings
from themis_shm_transport.plugin import WorkerSettings
from themis_shm_transport.transport import SocketTransport


def unix(settings: NoSettings) -> Transport:
    """The transport `unix`."""
    return SocketTransport("unix")


def shm(settings: NoSettings) -> Transport:
    """The transport `shm`."""
    return SocketTransport("shm")


def unix_backend(settings: WorkerSettings) -> Backend:
    """The model of a worker at a Unix socket."""
    return SocketTransport("unix").connect(f"unix://{quote(settings.path)}")


def shm_backend(settings: WorkerSettings) -> Backend:
    """The same over shared memory."""
    return SocketTransport("shm").connect(f"shm://{quote(settings.path)}")
