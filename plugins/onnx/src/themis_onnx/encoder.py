"""An encoder behind the engine's `EmbeddingRunner`: states of whole texts, many at once."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from themis_core.errors import BackendFailed, InternalError, ModelLoadFailed, RequestTooLarge
from themis_engine import Batch, Logits, RunnerInfo
from themis_onnx import ort
from themis_onnx.directory import ModelFiles
from themis_onnx.fingerprint import fingerprint, parameters, size_bytes
from themis_onnx.sentence import sentence_facts
from themis_onnx.settings import OnnxSettings
from themis_onnx.signature import encoder_output, text_config
from themis_onnx.steps import Array
from themis_onnx.tokenizer import EncoderTokenizer

_FILLING = 1.25  # The longest text of a run is at most so many times as long as the shortest.
_SHORT = 8  # Tokens by which texts may always differ.
_TOLERANCE = 0.02  # As a share of the states' standard deviation.

_log = logging.getLogger("themis.onnx")


class OnnxEncoder:
    """One encoder. Raises, when made, `ModelFileInvalid` or `ModelLoadFailed`."""

    def __init__(self, settings: OnnxSettings, files: ModelFiles) -> None:
        facts = sentence_facts(files)
        _check_settings(settings, facts.positions)
        self.tokenizer = EncoderTokenizer(files.root)
        self._session = ort.session(
            files.graph.path,
            files.graph.path.parent,
            provider=settings.provider,
            threads=settings.threads,
            what=str(files.graph.path),
        )
        self._kinds = {given.name: given.type for given in self._session.get_inputs()}
        self._output = encoder_output(self._session)
        self._together = True
        size = self._try_out(files)
        context = settings.context or facts.longest
        self.info = RunnerInfo(
            vocab_size=int(text_config(files.config).get("vocab_size") or 2**31 - 1),
            context_length=context,
            max_sequences=settings.parallel,
            kv_capacity=settings.parallel * context,
            max_batch=max(settings.batch_size, context),
            batch_invariant=False,
            embedding_size=size,
            pooling=facts.pooling,
            causal=False,
            parameters=parameters(files.graph),
            size_bytes=size_bytes(files.graph),
            description=f"encoder {files.root.name}/{files.graph.path.name} (ONNX)",
            fingerprint=fingerprint(files, settings.provider),
        )

    def hidden_states(self, batch: Batch) -> Logits:
        """States (positions, size) of whole sequences; nothing stays in them.

        Raises `RequestTooLarge` for a text that is longer than the context.
        """
        self._check(batch)
        found, counts = np.unique(batch.sequences, return_counts=True)
        longest = int(counts.max())
        if longest > self.info.context_length:
            raise RequestTooLarge(
                f"A text has {longest} tokens, but the model takes {self.info.context_length}.",
                field="inputs",
            )
        places = {s: np.flatnonzero(batch.sequences == s) for s in found.tolist()}
        states = np.empty((len(batch.tokens), self.info.embedding_size), np.float32)
        for group in self._groups(sorted(places.values(), key=len)):
            for place, rows in zip(
                group, self._compute([batch.tokens[place] for place in group]), strict=True
            ):
                states[place] = rows
        return states

    def forward(self, batch: Batch) -> Logits:
        """Not for encoders."""
        raise _misused("an encoder gives no logits")

    def copy(self, source: int, target: int, length: int) -> None:
        """Not for encoders, which keep nothing."""
        raise _misused("an encoder keeps nothing that could be copied")

    def truncate(self, sequence: int, length: int) -> bool:
        """Nothing is kept, so there is nothing to cut."""
        return True

    def free(self, sequence: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Let go of the session. Calling it again does nothing."""
        self._session = None

    def _groups(self, places: list[Array]) -> list[list[Array]]:
        """Texts of nearly one length, the shortest first, so that little is filling."""
        groups: list[list[Array]] = []
        for place in places:
            shortest = len(groups[-1][0]) if groups else 0
            near = len(place) <= max(shortest * _FILLING, shortest + _SHORT)
            if groups and near and self._together:
                groups[-1].append(place)
            else:
                groups.append([place])
        return groups

    def _compute(self, texts: list[Array]) -> list[Array]:
        """The states of each text (its tokens, size)."""
        lengths = np.array([len(text) for text in texts])
        ids = np.zeros((len(texts), lengths.max()), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds["position_ids"] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        narrow = {n for n, kind in self._kinds.items() if kind == "tensor(int32)"}
        given = {
            name: value.astype(np.int32 if name in narrow else np.int64)
            for name, value in feeds.items()
            if name in self._kinds
        }
        with ort.translated(BackendFailed, "ONNX Runtime could not compute a batch"):
            states = self._session.run([self._output], given)[0]
        if states.ndim == 2:  # One vector for the whole text: any pooling gives it again.
            states = np.repeat(states[:, None], ids.shape[1], axis=1)
        return [s[:n].astype(np.float32) for s, n in zip(states, lengths.tolist(), strict=True)]

    def _try_out(self, files: ModelFiles) -> int:
        """The size of the states; and see whether company changes them."""
        most = int(text_config(files.config).get("vocab_size") or 100)
        chance = np.random.default_rng(0)
        texts = [chance.integers(0, most, length) for length in (9, 4)]
        try:
            alone = [self._compute([text])[0] for text in texts]
        except BackendFailed as error:
            raise ModelLoadFailed(
                f"ONNX Runtime cannot compute with {files.graph.path}: {error.message}",
                plugin="onnx",
            ) from error
        if alone[0].ndim != 2 or not all(np.isfinite(states).all() for states in alone):
            raise ModelLoadFailed(
                f"{files.graph.path} gives states that are no numbers, or of the shape "
                f"{list(alone[0].shape)}.",
                plugin="onnx",
            )
        together = self._compute(texts)
        spread = max(float(alone[0].std()), 1e-6)
        worst = max(float(np.abs(t - a).max()) for t, a in zip(together, alone, strict=True))
        self._together = worst <= _TOLERANCE * spread
        if not self._together:
            _log.warning("This encoder gives other states in company: texts go one by one.")
        return int(alone[0].shape[1])

    def _check(self, batch: Batch) -> None:
        count = len(batch.tokens)
        if not 0 < count <= self.info.max_batch:
            raise _misused(f"a batch of {count} positions; possible are 1 to {self.info.max_batch}")
        if len(batch.logit_rows) or batch.adapters:
            raise _misused("an encoder gives no logits and takes no adapters")
        if not 0 <= batch.sequences.min() <= batch.sequences.max() < self.info.max_sequences:
            raise _misused("the batch has a sequence that does not exist")
        if not 0 <= batch.tokens.min() <= batch.tokens.max() < self.info.vocab_size:
            raise _misused("the batch has a token that does not exist")
        for sequence in np.unique(batch.sequences):
            positions: Any = batch.positions[batch.sequences == sequence]
            if not np.array_equal(positions, np.arange(len(positions))):
                raise _misused("the batch has a sequence that does not begin at position 0")


def _check_settings(settings: OnnxSettings, positions: int) -> None:
    if (settings.context or 0) > positions:
        raise ModelLoadFailed(
            f"context is {settings.context}, but the model has {positions} positions.",
            field="context",
            remedy=f"Set context to at most {positions}.",
            plugin="onnx",
        )
    for name in ("adapters", "draft_path"):
        if getattr(settings, name):
            raise ModelLoadFailed(
                f"{name} is set, but the model is an encoder, which does not generate.",
                field=name,
                remedy=f"Leave {name} out.",
                plugin="onnx",
            )


def _misused(what: str) -> InternalError:
    return InternalError(f"The runner was called wrongly: {what}.", plugin="onnx")
