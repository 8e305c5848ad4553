"""The part of the runtime that this front door uses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from themis_core.messages import (
    BackendStats,
    Completion,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)
from themis_core.runtime import HookStats
from themis_core.worker import WorkerStatus


class ModelRow(Protocol):
    """A configured model at this moment."""

    @property
    def name(self) -> str:
        """The name that requests use."""
        ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """Further names that requests may use."""
        ...

    @property
    def backend(self) -> str:
        """The plugin that runs it."""
        ...

    @property
    def state(self) -> str:
        """unloaded, loading, ready or failed."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """Facts, if it is loaded."""
        ...

    @property
    def worker(self) -> WorkerStatus | None:
        """Its process, if it has one of its own."""
        ...


class RuntimePort(Protocol):
    """`themis_core.runtime.Runtime`, as far as HTTP requests reach."""

    @property
    def default_model(self) -> str:
        """The model that serves requests without a name; empty if there is none."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request; closing the generator cancels it."""
        ...

    async def complete(self, request: GenerateRequest) -> Completion:
        """The same, gathered."""
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector for each input."""
        ...

    def models(self) -> Sequence[ModelRow]:
        """All configured models; loads nothing."""
        ...

    async def stats(self) -> Mapping[str, BackendStats]:
        """Counters and gauges of the loaded models, by name."""
        ...

    def hook_stats(self) -> Sequence[HookStats]:
        """The times and failures of validators and the quota."""
        ...
