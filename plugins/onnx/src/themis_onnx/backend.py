"""The factory: settings in, a `Backend` out. Nothing is loaded before `start`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from themis_engine import EngineBackend, EngineOptions, ModelRunner
from themis_engine.options import AdapterFile
from themis_onnx.settings import OnnxSettings


def create(settings: OnnxSettings) -> EngineBackend:
    """A backend for one model directory."""
    return EngineBackend(
        lambda: _load(settings),
        backend="onnx",
        options=EngineOptions(
            parallel=settings.parallel,
            prefill_chunk=settings.prefill_chunk,
            prefix_cache=settings.prefix_cache,
            adapters=_adapters(settings),
            speculation=settings.speculation,
            draft_tokens=settings.draft_tokens,
            pooling=settings.pooling,
        ),
        draft=(lambda: _load(draft_settings(settings))) if settings.draft_path else None,
    )


def _adapters(settings: OnnxSettings) -> dict[str, str | AdapterFile]:
    """As the engine takes them; the settings' own class lets plugins be listed without it."""
    return {
        name: file if isinstance(file, str) else AdapterFile(**msgspec.structs.asdict(file))
        for name, file in settings.adapters.items()
    }


def _load(settings: OnnxSettings) -> ModelRunner:
    # Imported in the engine's thread: loading ONNX Runtime takes a while.
    from themis_onnx.loading import load

    return load(settings)


def draft_settings(settings: OnnxSettings) -> OnnxSettings:
    """The draft model's: as the model's own, with no adapters and no more context than it has.

    Raises `ModelFileInvalid` or `ModelLoadFailed` if its directory is unusable.
    """
    from themis_onnx.directory import find
    from themis_onnx.signature import trained_context

    path = Path(settings.draft_path or "").expanduser()
    context = settings.context
    trained = trained_context(find(path, None, settings.provider))
    if context is not None and trained is not None:
        context = min(context, trained)
    return msgspec.structs.replace(
        settings,
        path=str(path),
        variant=None,
        context=context,
        adapters={},
        speculation="off",
        draft_path=None,
    )
