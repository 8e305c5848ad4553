"""Putting the parts of an engine around a runner. Runs in the engine's thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from themis_core.errors import ModelLoadFailed
from themis_engine.crossing import Crossing
from themis_engine.kv.store import PrefixStore
from themis_engine.options import AdapterFile, EngineOptions
from themis_engine.pace import PrefillPace
from themis_engine.runner import AdapterRunner, EmbeddingRunner, ModelRunner, StateRunner
from themis_engine.scheduler import Scheduler
from themis_engine.speculation import DraftModel, PromptLookup, Speculation
from themis_engine.stepper import Stepper

_MIB = 2**20


def assemble(
    load: Callable[[], ModelRunner],
    draft: Callable[[], ModelRunner] | None,
    options: EngineOptions,
    crossing: Crossing,
) -> tuple[ModelRunner, Stepper]:
    """Load the runner and what belongs to it. If anything fails, all of it is closed."""
    runner = load()
    speculation = None
    try:
        _check(runner, options)
        speculation = _speculation(runner, draft, options)
        stepper = Stepper(
            runner,
            crossing,
            Scheduler(
                runner.info,
                PrefillPace(options.prefill_chunk),
                parallel=options.parallel,
                keep=options.prefix_cache,
            ),
            speculation,
            _store(runner, options),
        )
        for name, adapter in options.adapters.items():
            assert isinstance(runner, AdapterRunner)
            runner.load_adapter(name, file_of(adapter).path)
        return runner, stepper
    except BaseException:  # Whatever is wrong, nothing may stay loaded.
        if speculation is not None:
            speculation.close()
        runner.close()
        raise


def file_of(adapter: str | AdapterFile) -> AdapterFile:
    """An adapter may be given by its path alone."""
    return AdapterFile(path=adapter) if isinstance(adapter, str) else adapter


def _check(runner: ModelRunner, options: EngineOptions) -> None:
    info = runner.info
    if info.max_batch < (options.parallel or info.max_sequences):
        raise ModelLoadFailed(
            f"max_batch ({info.max_batch}) must be at least the number of sequences that run at "
            f"once ({options.parallel or info.max_sequences})."
        )
    if options.adapters and not isinstance(runner, AdapterRunner):
        raise ModelLoadFailed(
            "This model takes no LoRA adapters.", remedy="Remove the setting adapters."
        )
    if options.adapter_choice == "query" and not _embeds(runner):
        raise ModelLoadFailed(
            "Adapters cannot be chosen by the query: this model gives no embeddings.",
            remedy='Set adapter_choice to "request".',
        )
    stored = options.prefix_ram_mib or options.prefix_disk is not None
    able = isinstance(runner, StateRunner) and bool(info.fingerprint)
    if stored and not (able and options.prefix_cache):
        raise ModelLoadFailed(
            "Prefixes cannot be stored: this model's KV cache cannot be saved, or prefix_cache is "
            "false.",
            remedy="Remove the settings prefix_ram_mib and prefix_disk.",
        )


def _embeds(runner: ModelRunner) -> bool:
    return isinstance(runner, EmbeddingRunner) and runner.info.embedding_size > 0


def _speculation(
    runner: ModelRunner, draft: Callable[[], ModelRunner] | None, options: EngineOptions
) -> Speculation | None:
    if options.speculation == "off":
        return None
    if not runner.info.truncates:
        raise ModelLoadFailed(
            "Speculation needs a model whose KV cache can be truncated, and this one's cannot.",
            remedy='Set speculation to "off".',
        )
    if options.speculation == "lookup":
        return Speculation(PromptLookup(), options.draft_tokens)
    if draft is None:
        raise ModelLoadFailed("Speculation with a draft model needs one.")
    return Speculation(DraftModel(draft(), runner, options.draft_tokens), options.draft_tokens)


def _store(runner: ModelRunner, options: EngineOptions) -> PrefixStore | None:
    if not options.prefix_ram_mib and options.prefix_disk is None:
        return None
    folder = None if options.prefix_disk is None else Path(options.prefix_disk)
    return PrefixStore(
        runner.info.fingerprint,
        ram_bytes=options.prefix_ram_mib * _MIB,
        folder=folder,
        disk_bytes=options.prefix_disk_mib * _MIB,
        truncates=runner.info.truncates,
    )
