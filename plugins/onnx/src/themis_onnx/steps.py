"""Running a decoder's graph: token ids and lengths in, logits out, through I/O binding.

The KV cache is bound by whoever owns it, and only when something about it has changed: binding 60
tensors takes about a millisecond.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from themis_core.errors import BackendFailed, ModelLoadFailed
from themis_engine import Logits, StepInterrupted
from themis_onnx import ort
from themis_onnx.signature import TYPES, Signature

Array = npt.NDArray[Any]
Inputs = dict[str, Array]

_BINDINGS = 8  # Each purpose and set of adapters has one; more are made anew when needed.


class Steps:
    """The graph of one session. Not to be used by two threads at once."""

    def __init__(self, session: Any, signature: Signature, none: Inputs) -> None:
        """Computes three tokens, to see what comes out. Raises `ModelLoadFailed`.

        `none` are the inputs that the graph has for adapters, as they are without any.
        """
        self.signature = signature
        self._session = session
        self._keep_shape = _keep_shape(session) if signature.keeps else None
        self._bindings: OrderedDict[tuple[str, Hashable], _Binding] = OrderedDict()
        self._extra = self._none = none
        self._extra_key: Hashable = ()
        self._options: Any = None  # Of the runs that belong together now.
        self.vocab_size, self.last_only = self._look()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Runs within are ended by one `interrupt`, which raises `StepInterrupted` here."""
        self._options = options = ort.runtime().RunOptions()
        try:
            yield
        except BackendFailed as error:
            if options.terminate:
                raise StepInterrupted from error
            raise
        finally:
            self._options = None

    def interrupt(self) -> None:
        """From any thread: end the runs that belong together now, if there are any."""
        options = self._options
        if options is not None:
            options.terminate = True

    def replace(self, session: Any, none: Inputs) -> None:
        """Go on with another session of the same model, which has the inputs `none` besides."""
        self._session = session
        self._bindings.clear()
        self._extra = self._none = none
        self._extra_key = ()

    def use(self, key: Hashable, extra: Inputs) -> None:
        """From now on, feed these inputs instead of the empty ones; `key` tells them apart."""
        if key != self._extra_key:
            self._extra_key = key
            self._extra = self._none | extra

    def forget(self, applies: Callable[[Hashable], bool]) -> None:
        """Drop what is bound for such keys."""
        for name in [name for name in self._bindings if applies(name[1])]:
            del self._bindings[name]
        if applies(self._extra_key):
            self.use((), {})

    def run(
        self,
        purpose: str,
        ids: Array,
        mask: Array,
        positions: Array,
        keep: int,
        key: Hashable,
        bind: Callable[[Any], None],
    ) -> Array:
        """Logits (n, kept, vocabulary) of `ids` (n, S), in the graph's own type.

        `mask` (n, past + S) and `positions` (n, S) are fed if the graph has them. `keep` is how
        many positions, counted from the last, are wanted; more may come. `bind` binds the KV
        cache, and is called only if `key` is another than the last time for this `purpose`. The
        result is overwritten by the next run for it. Raises `BackendFailed`.
        """
        binding = self._binding(purpose)
        io, signature = binding.io, self.signature
        count, length = ids.shape
        kept = 1 if self.last_only else keep if self._keep_shape is not None else length
        with ort.translated(BackendFailed, "ONNX Runtime could not compute a step"):
            if binding.key != key:
                binding.key = None
                bind(io)
                binding.key = key
            binding.feed("input_ids", ids)
            if signature.mask:
                binding.feed("attention_mask", mask)
            if signature.positions:
                binding.feed("position_ids", positions)
            if self._keep_shape is not None:
                binding.feed("num_logits_to_keep", np.full(self._keep_shape, kept))
            logits = binding.logits(count, kept, self.vocab_size, signature.logits_kind)
            self._session.run_with_iobinding(io, self._options)
        return logits

    def _binding(self, purpose: str) -> _Binding:
        name = (purpose, self._extra_key)
        binding = self._bindings.get(name)
        if binding is None:
            binding = self._bindings[name] = _Binding(self._session.io_binding(), self.signature)
            for extra, value in self._extra.items():
                binding.feed(extra, value)
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(name)
        return binding

    def _look(self) -> tuple[int, bool]:
        """The size of the vocabulary, and whether only the last position's logits come."""
        signature, count = self.signature, 3
        feeds: Inputs = {"input_ids": np.zeros((1, count), np.int64)}
        if signature.mask:
            feeds["attention_mask"] = np.ones((1, count), np.int64)
        if signature.positions:
            feeds["position_ids"] = np.arange(count, dtype=np.int64)[None]
        if self._keep_shape is not None:
            feeds["num_logits_to_keep"] = np.full(self._keep_shape, count)
        with ort.translated(ModelLoadFailed, "ONNX Runtime cannot compute with this model"):
            io = self._session.io_binding()
            # ONNX Runtime reads the arrays themselves, so they must stay alive.
            feeds = {n: v.astype(_whole(signature.kinds[n])) for n, v in feeds.items()}
            for name, value in (feeds | self._none).items():
                io.bind_cpu_input(name, value)
            empty = np.zeros(16, np.float32)
            for cached in signature.cache:
                number = TYPES[cached.kind][1]
                shape = [1, cached.heads, 0, cached.size]
                io.bind_input(cached.past, "cpu", 0, number, shape, empty.ctypes.data)
                io.bind_output(cached.present, "cpu")
            io.bind_output("logits", "cpu")
            self._session.run_with_iobinding(io)
            found = io.get_outputs()[-1].shape()
        if len(found) != 3 or found[0] != 1 or found[1] not in (1, count):
            raise ModelLoadFailed(
                f"The model's logits have the shape {list(found)} for {count} tokens.",
                plugin="onnx",
            )
        return int(found[2]), found[1] == 1


class _Binding:
    """An I/O binding with what must stay alive while it is used."""

    def __init__(self, io: Any, signature: Signature) -> None:
        self.io = io
        self.key: Hashable = None
        self._kinds = signature.kinds
        self._alive: Inputs = {}
        self._logits: Array = np.empty(0)

    def feed(self, name: str, value: Array) -> None:
        """Bind an input; ONNX Runtime reads the array itself, so it is kept."""
        kind = self._kinds.get(name)
        fed = np.ascontiguousarray(value, value.dtype if kind is None else _whole(kind))
        self._alive[name] = fed
        self.io.bind_cpu_input(name, fed)

    def logits(self, count: int, kept: int, vocabulary: int, kind: str) -> Array:
        """The array that the logits come in, bound."""
        shape = (count, kept, vocabulary)
        if self._logits.shape != shape:
            dtype, number = TYPES[kind]
            self._logits = np.empty(shape, dtype)
            self.io.bind_output("logits", "cpu", 0, number, list(shape), self._logits.ctypes.data)
        return self._logits


def as_float32(values: Array, kind: str) -> Logits:
    """Numbers of one of `TYPES` as float32."""
    if kind == "tensor(bfloat16)":  # The upper half of float32.
        return (values.astype(np.uint32) << 16).view(np.float32)
    converted: Logits = values.astype(np.float32, copy=False)
    return converted


def _whole(kind: str) -> Any:
    """numpy's type for an input of whole numbers; other inputs are fed as they are."""
    return {"tensor(int32)": np.int32, "tensor(int64)": np.int64}.get(kind)


def _keep_shape(session: Any) -> tuple[int, ...]:
    shapes = {given.name: given.shape for given in session.get_inputs()}
    return tuple(1 for _ in shapes["num_logits_to_keep"])
