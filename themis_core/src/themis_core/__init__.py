"""Themis: large language models, assembled from plugins by one configuration file.

async with themis_core.open("themis.toml") as runtime:
    async for event in runtime.generate(request): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from themis_core.messages import ChatMessage, GenerateRequest, SamplingParams
    from themis_core.runtime import BlockingRuntime, Runtime, open  # noqa: A004

__all__ = [
    "BlockingRuntime",
    "ChatMessage",
    "GenerateRequest",
    "Runtime",
    "SamplingParams",
    "open",
    "open_blocking",
]

_MODULES = {
    "BlockingRuntime": "runtime",
    "Runtime": "runtime",
    "open": "runtime",
    "ChatMessage": "messages",
    "GenerateRequest": "messages",
    "SamplingParams": "messages",
}


def open_blocking(*args: Any, **kwargs: Any) -> BlockingRuntime:
    """Like `open`, for code without asyncio; enter it with `with`."""
    from themis_core.runtime import BlockingRuntime, open  # noqa: A004

    return BlockingRuntime(open(*args, **kwargs))


def __getattr__(name: str) -> Any:
    # Deferred, so that `import themis_core` (and each plugin's import of it) stays quick.
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"themis_core.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
