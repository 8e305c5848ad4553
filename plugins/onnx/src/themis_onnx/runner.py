"""ONNX Runtime behind the engine's `ModelRunner`: a decoder with its KV cache."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from themis_core.errors import InternalError, ModelLoadFailed
from themis_core.messages import AdapterWeight
from themis_engine import Batch, Logits, RunnerInfo
from themis_onnx import ort, probe
from themis_onnx.cache import Cache
from themis_onnx.concatenated_cache import ConcatenatedCache
from themis_onnx.directory import ModelFiles
from themis_onnx.fingerprint import fingerprint, parameters, size_bytes
from themis_onnx.graph_edit import Edit, edited
from themis_onnx.head_graph import spare_logits
from themis_onnx.lora_graph import add_inputs, targets
from themis_onnx.machine import memory_limit
from themis_onnx.settings import OnnxSettings
from themis_onnx.shared_cache import SharedCache
from themis_onnx.signature import Signature, decoder_signature, trained_context
from themis_onnx.steps import Array, Inputs, Steps, as_float32
from themis_onnx.tokenizer import DecoderTokenizer

_DEFAULT_CONTEXTS = 4
_DEFAULT_TOKENS = 32_768  # Beyond one context, models made for 128k tokens would take too much.
_PREFIXES = 16

# Indices of a batch's positions, ordered by sequence; the sequences; where each begins in that
# order, and how many positions it has.
_Parts = tuple[npt.NDArray[Any], ...]

_log = logging.getLogger("themis.onnx")


class OnnxRunner:
    """One decoder. Raises, when made, `ModelFileInvalid` or `ModelLoadFailed`.

    Calls that break the contract raise `InternalError` and change nothing.
    """

    def __init__(
        self, settings: OnnxSettings, files: ModelFiles, none: Inputs | None = None
    ) -> None:
        """With `none`, the graph is given inputs for adapters; these mean that there is none."""
        self._settings, self._files = settings, files
        self.tokenizer = DecoderTokenizer(files.root, files.genai)
        self._steps = self._open(none or {})
        signature = self._steps.signature
        self._kind = signature.logits_kind
        context = _context(files, settings)
        tokens = _kv_tokens(context, settings, signature)
        self._piece = settings.micro_batch_size
        trial = _cache(self._steps, probe.SEQUENCES, probe.TOKENS, probe.TOKENS)
        self._batches = probe.batches(trial, self._steps.vocab_size, self._kind, files.graph.ops)
        prefixes = settings.prefix_sequences if settings.prefix_cache else 0
        sequences = settings.parallel + (_PREFIXES if prefixes is None else prefixes)
        self._cache = _cache(self._steps, sequences, context, settings.kv_step)
        self.info = RunnerInfo(
            vocab_size=self._steps.vocab_size,
            context_length=context,
            max_sequences=sequences,
            kv_capacity=tokens,
            max_batch=settings.batch_size,
            batch_invariant=False,  # The kernels of ONNX Runtime differ with the shape of a batch.
            ragged=False,  # Pieces of prompts are computed one after the other.
            parameters=parameters(files.graph),
            size_bytes=size_bytes(files.graph),
            description=_describe(files, signature, self._batches),
            fingerprint=fingerprint(files, settings.provider),
        )

    def forward(self, batch: Batch) -> Logits:
        """Compute a batch. On an error, no sequence has changed."""
        parts = self._check(batch)
        self._use(batch.adapters)
        before = self._cache.held.copy()
        try:
            with self._steps.together():
                return self._compute(batch, parts)
        except BaseException:
            for sequence in np.unique(batch.sequences).tolist():
                self._cache.truncate(sequence, int(before[sequence]))
            raise

    def interrupt(self) -> None:
        """From any thread: end the batch that is being computed."""
        steps = self.__dict__.get("_steps")  # Another thread may be closing.
        if steps is not None:
            steps.interrupt()

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a prefix's keys and values."""
        self._exists(source)
        self._exists(target)
        held = self._cache.held
        if source == target or held[target] or not 0 <= length <= held[source]:
            raise _misused(f"cannot copy {length} of {held[source]} tokens from {source}")
        if length:
            self._cache.copy(source, target, length)

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget all from `length` on. Always possible."""
        self._exists(sequence)
        if length < 0:
            raise _misused(f"cannot truncate to {length} tokens")
        self._cache.truncate(sequence, length)
        return True

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        self._exists(sequence)
        self._cache.free(sequence)

    def close(self) -> None:
        """Let go of session and cache. Calling it again does nothing."""
        for name in ("_steps", "_cache"):
            self.__dict__.pop(name, None)

    def _open(self, none: Inputs) -> Steps:
        """A session, tried out: one that can spare logits, if the graph bears that."""
        if spare_logits(self._files.graph, Edit()):
            try:
                self._spares = True
                session = self._session(for_adapters=bool(none))
                return Steps(session, decoder_signature(self._files, session), none)
            except ModelLoadFailed as error:
                _log.info("Computing all logits, since the changed graph fails: %s", error)
        self._spares = False
        session = self._session(for_adapters=bool(none))
        return Steps(session, decoder_signature(self._files, session), none)

    def _session(self, *, for_adapters: bool) -> Any:
        graph, settings, edit = self._files.graph, self._settings, Edit()
        if self._spares:
            spare_logits(graph, edit)
        if for_adapters:
            add_inputs(edit, targets(graph))
        return ort.session(
            edited(graph, edit) if self._spares or for_adapters else graph.path,
            graph.path.parent,
            provider=settings.provider,
            threads=settings.threads,
            what=str(graph.path),
        )

    def _use(self, adapters: tuple[AdapterWeight, ...]) -> None:
        """Compute with these adapters from now on."""
        if adapters:
            raise _misused("the batch has adapters, and this model takes none")

    def _compute(self, batch: Batch, parts: _Parts) -> Logits:
        """The logits of a batch that has been checked."""
        tokens, rows = batch.tokens.astype(np.int64), batch.logit_rows
        order, found, starts, counts = parts
        if self._batches and len(found) == len(rows) == len(tokens) and (np.diff(order) > 0).all():
            # The usual step: everybody decodes, and the logits are returned where they are.
            return as_float32(self._cache.decode(found.tolist(), tokens), self._kind)
        logits = np.empty((len(rows), self.info.vocab_size), np.float32)
        row_of = np.full(len(tokens), -1)
        row_of[rows] = np.arange(len(rows))
        single = counts == 1
        for sequence, start, count in zip(
            found[~single].tolist(), starts[~single], counts[~single], strict=True
        ):
            places = order[start : start + count]
            self._extend(sequence, tokens[places], row_of[places], logits)
        places = order[starts[single]]
        groups = [places] if self._batches else [places[i : i + 1] for i in range(len(places))]
        for group in groups:
            if len(group):
                given = self._cache.decode(batch.sequences[group].tolist(), tokens[group])
                wanted = row_of[group] >= 0
                logits[row_of[group][wanted]] = as_float32(given[wanted], self._kind)
        return logits

    def _extend(
        self, sequence: int, tokens: Array, row_of: npt.NDArray[np.int_], logits: Logits
    ) -> None:
        """Compute several tokens of one sequence, in pieces; wanted logits go to their rows."""
        start = 0
        while start < len(tokens):
            end = min(start + self._piece, len(tokens))
            wanted = start + np.flatnonzero(row_of[start:end] >= 0)
            if len(wanted) and self._steps.last_only:
                # The graph tells nothing but the last position's logits.
                end = int(wanted[0]) + 1
                wanted = wanted[:1]
            keep = end - int(wanted[0]) if len(wanted) else 1
            given = self._cache.extend(sequence, tokens[start:end], keep)
            if len(wanted):
                first = end - len(given)  # The position that the first row is of.
                logits[row_of[wanted]] = as_float32(given[wanted - first], self._kind)
            start = end

    def _exists(self, sequence: int) -> None:
        if not 0 <= sequence < self.info.max_sequences:
            raise _misused(f"there is no sequence {sequence}")

    def _check(self, batch: Batch) -> _Parts:
        """The sequences of a batch. Raises `InternalError` if it breaks the contract."""
        info, count, rows = self.info, len(batch.tokens), batch.logit_rows
        if not 0 < count <= info.max_batch:
            raise _misused(f"a batch of {count} positions; possible are 1 to {info.max_batch}")
        if len(rows) and not (rows[0] >= 0 and rows[-1] < count and (np.diff(rows) > 0).all()):
            raise _misused("logit_rows must be different indices, in rising order")
        if not 0 <= batch.sequences.min() <= batch.sequences.max() < info.max_sequences:
            raise _misused("the batch has a sequence that does not exist")
        if not 0 <= batch.tokens.min() <= batch.tokens.max() < info.vocab_size:
            raise _misused("the batch has a token that does not exist")
        order = np.argsort(batch.sequences, kind="stable")
        found, starts, counts = np.unique(
            batch.sequences[order], return_index=True, return_counts=True
        )
        first = np.repeat(self._cache.held[found] - starts, counts)
        if not np.array_equal(batch.positions[order], first + np.arange(count)):
            raise _misused("the positions do not continue what the sequences hold")
        if batch.positions.max() >= info.context_length:
            raise _misused(f"a sequence is longer than the context of {info.context_length}")
        return order, found, starts, counts


def _cache(steps: Steps, sequences: int, context: int, step: int) -> Cache:
    if steps.signature.layout == "shared":
        return SharedCache(steps, sequences, context, step)
    return ConcatenatedCache(steps, sequences)


def _context(files: ModelFiles, settings: OnnxSettings) -> int:
    """Most tokens of one sequence. Raises `ModelLoadFailed` for more than the model knows."""
    trained = trained_context(files)
    if trained is None and settings.context is None:
        raise ModelLoadFailed(
            f"Nothing in {files.root} says how long the model's context is.",
            field="context",
            remedy="Set context.",
            plugin="onnx",
        )
    if trained is not None and (settings.context or 0) > trained:
        raise ModelLoadFailed(
            f"context is {settings.context}, but the model was trained for {trained} tokens.",
            field="context",
            remedy=f"Set context to at most {trained}.",
            plugin="onnx",
        )
    return settings.context or trained or 0


def planned_tokens(context: int, settings: OnnxSettings) -> int:
    """Tokens in the KV cache, if they fit into memory."""
    several = context * min(settings.parallel, _DEFAULT_CONTEXTS)
    return settings.kv_tokens or min(several, max(context, _DEFAULT_TOKENS))


def _kv_tokens(context: int, settings: OnnxSettings, signature: Signature) -> int:
    """Tokens in the KV cache. Raises `ModelLoadFailed` if they cannot fit into memory."""
    tokens = planned_tokens(context, settings)
    available, needed = memory_limit(), tokens * signature.bytes_per_token
    if available is not None and needed > available:
        raise ModelLoadFailed(
            f"A KV cache of {tokens} tokens needs {needed / 2**30:.1f} GiB, but there are only "
            f"{available / 2**30:.1f} GiB of memory.",
            field="kv_tokens",
            remedy="Lower kv_tokens, context or parallel.",
            plugin="onnx",
        )
    return tokens


def _describe(files: ModelFiles, signature: Signature, batches: bool) -> str:
    kind = files.config.get("model_type")
    genai = files.genai.get("model")
    if not isinstance(kind, str) and isinstance(genai, dict):
        kind = genai.get("type")
    together = "" if batches else ", one sequence at a time"
    name = f"{files.root.name}/{files.graph.path.name}"
    return f"{kind or 'decoder'} {name} (ONNX, {signature.layout} KV cache{together})"


def _misused(what: str) -> InternalError:
    return InternalError(f"The runner was called wrongly: {what}.", plugin="onnx")
