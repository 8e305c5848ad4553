"""Models in processes of their own: hosting one, supervising one, and carrying on after a crash."""

from themis_core.worker.host import HostOptions, host
from themis_core.worker.isolated import IsolatedBackend
from themis_core.worker.making import isolated_backend
from themis_core.worker.process import WorkerExit
from themis_core.worker.spec import Spec
from themis_core.worker.supervisor import WorkerStatus

__all__ = [
    "HostOptions",
    "IsolatedBackend",
    "Spec",
    "WorkerExit",
    "WorkerStatus",
    "host",
    "isolated_backend",
]
