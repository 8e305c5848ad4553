"""What this distribution offers to Themis. Importing it must not import what it describes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from themis_core.hooks import BackendPlugin, Finding, TransportPlugin, hookimpl


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "unix"` and `backend = "shm"`: a worker that runs elsewhere."""

    path: Annotated[
        str,
        msgspec.Meta(
            min_length=1, description="The absolute path of the socket of a `themis worker`."
        ),
    ]


@hookimpl
def themis_transports() -> list[TransportPlugin]:
    """`unix` and `shm`."""
    return [
        TransportPlugin(
            name="unix",
            help="A Unix domain socket.",
            factory="themis_shm_transport.create:unix",
        ),
        TransportPlugin(
            name="shm",
            help="A Unix domain socket, with shared memory for what is large.",
            factory="themis_shm_transport.create:shm",
        ),
    ]


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """The models of workers that listen on this host."""
    return [
        BackendPlugin(
            name=name,
            help=f"The model of a worker that listens on {name}://.",
            settings=WorkerSettings,
            factory=f"themis_shm_transport.create:{name}_backend",
        )
        for name in ("unix", "shm")
    ]


@hookimpl
def themis_diagnose() -> list[Finding]:
    """Shared memory, descriptors, core dumps."""
    from themis_shm_transport import diagnosis  # Late: only `themis doctor` needs it.

    return diagnosis.host()
