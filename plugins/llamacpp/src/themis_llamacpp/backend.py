"""The factory: settings in, a `Backend` out. Nothing native is loaded before `start`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from themis_engine import EngineBackend, EngineOptions, ModelRunner
from themis_engine.options import AdapterFile
from themis_llamacpp import gguf_header
from themis_llamacpp.settings import LlamaCppSettings


def create(settings: LlamaCppSettings) -> EngineBackend:
    """A backend for one GGUF model."""
    return EngineBackend(
        lambda: _load(settings),
        backend="llamacpp",
        options=EngineOptions(
            parallel=settings.parallel,
            prefill_chunk=settings.prefill_chunk,
            prefix_cache=settings.prefix_cache,
            prefix_ram_mib=settings.prefix_ram_mib,
            prefix_disk=settings.prefix_disk,
            prefix_disk_mib=settings.prefix_disk_mib,
            adapters=_adapters(settings),
            adapter_choice=settings.adapter_choice,
            speculation=settings.speculation,
            draft_tokens=settings.draft_tokens,
            pooling=settings.pooling,
        ),
        draft=(lambda: _load_draft(settings)) if settings.speculation == "draft" else None,
    )


def _adapters(settings: LlamaCppSettings) -> dict[str, str | AdapterFile]:
    """As the engine takes them; the settings' own class lets plugins be listed without it."""
    return {
        name: file if isinstance(file, str) else AdapterFile(**msgspec.structs.asdict(file))
        for name, file in settings.adapters.items()
    }


def _load(settings: LlamaCppSettings) -> ModelRunner:
    # Imported in the engine's thread: loading the native library takes half a second.
    from themis_llamacpp.runner import LlamaRunner

    return LlamaRunner(settings)


def _load_draft(settings: LlamaCppSettings) -> ModelRunner:
    return _load(draft_settings(settings))


def draft_settings(settings: LlamaCppSettings) -> LlamaCppSettings:
    """The draft model's: as the model's own, with no adapters and no more context than it has.

    Raises `ModelFileInvalid` if its file is unusable.
    """
    path = settings.draft_path or ""
    metadata = gguf_header.check(Path(path).expanduser()).metadata
    trained = metadata.get(f"{metadata['general.architecture']}.context_length")
    context = settings.context
    if context is not None and type(trained) is int:
        context = min(context, trained)
    return msgspec.structs.replace(
        settings,
        path=path,
        context=context,
        adapters={},
        speculation="off",
        draft_path=None,
    )
