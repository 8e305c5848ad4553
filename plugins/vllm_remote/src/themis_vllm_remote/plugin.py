"""What this distribution offers to Themis. Importing it must not import what it describes."""

from __future__ import annotations

from collections.abc import Sequence

from themis_core.hooks import BackendPlugin, hookimpl
from themis_vllm_remote.settings import EngineSettings, VllmSettings, transports_of


@hookimpl
def themis_backends() -> Sequence[BackendPlugin]:
    """`vllm`, a server elsewhere, and `vllm_engine`, the engine in a worker."""
    return [
        BackendPlugin(
            name="vllm",
            help="A model that vLLM serves, over HTTP, gRPC, or a worker beside it.",
            settings=VllmSettings,
            factory="themis_vllm_remote.create:remote",
            uses=transports_of,
        ),
        BackendPlugin(
            name="vllm_engine",
            help="vLLM's engine, to be hosted by `themis worker`.",
            settings=EngineSettings,
            factory="themis_vllm_remote.create:engine",
        ),
    ]
