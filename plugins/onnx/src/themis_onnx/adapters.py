"""The LoRA adapters of one model: what the graph is fed with for a set of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from themis_core.errors import InternalError
from themis_core.messages import AdapterWeight
from themis_onnx.lora_graph import Target
from themis_onnx.onnx_file import FLOAT16
from themis_onnx.peft import Delta, read_adapter, refuse
from themis_onnx.safetensors import Matrix
from themis_onnx.steps import Array, Inputs

AdapterSet = tuple[AdapterWeight, ...]

# Projections that exporters compute as one, and what they are made of, in this order.
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_COMBINED = 16  # Sets that are remembered; making one takes milliseconds.


class Adapters:
    """The loaded adapters by name. `pairs` is the number of outputs of k_proj, and of v_proj."""

    def __init__(self, targets: list[Target], pairs: int) -> None:
        self._targets = {(t.layer, t.module): t for t in targets}
        self._pairs = pairs
        self._loaded: dict[str, dict[tuple[int, str], Delta]] = {}
        self._combined: dict[AdapterSet, Inputs] = {}

    @property
    def none(self) -> Inputs:
        """What the graph is fed with for no adapter: matrices of rank 0."""
        return {
            name: np.zeros(shape, _dtype(target))
            for target in self._targets.values()
            for name, shape in (
                (target.a, (target.inputs, 0)),
                (target.b, (0, target.outputs)),
            )
        }

    def load(self, name: str, folder: Path) -> None:
        """Read a PEFT directory. Raises `ModelFileInvalid` with the true cause."""
        if name in self._loaded:
            raise _misused(f"an adapter {name!r} is loaded already")
        found = read_adapter(folder)
        for place, delta in found.items():
            self._check(folder, place, delta)
        self._loaded[name] = found

    def unload(self, name: str) -> None:
        """Forget an adapter."""
        if name not in self._loaded:
            raise _misused(f"there is no adapter {name!r}")
        del self._loaded[name]
        gone = uses(name)
        self._combined = {s: made for s, made in self._combined.items() if not gone(s)}

    def inputs(self, adapters: AdapterSet) -> Inputs:
        """What the graph is fed with for a set; projections that none of them changes are left
        out."""
        names = [adapter.name for adapter in adapters]
        if len(set(names)) < len(names) or not self._loaded.keys() >= set(names):
            raise _misused(f"a batch with the adapters {names}; loaded are {list(self._loaded)}")
        made = self._combined.get(adapters)
        if made is None:
            made = self._combined[adapters] = self._combine(adapters)
            if len(self._combined) > _COMBINED:
                del self._combined[next(iter(self._combined))]
        return made

    def _combine(self, adapters: AdapterSet) -> Inputs:
        """Side by side, the adapters of a set are one adapter whose rank is the sum of theirs."""
        made: Inputs = {}
        for target in self._targets.values():
            parts = _FUSED.get(target.module, (target.module,))
            left: list[Matrix] = []
            right: list[Matrix] = []
            for adapter in adapters:
                start = 0
                for part in parts:
                    width = self._width(target, part)
                    delta = self._loaded[adapter.name].get((target.layer, part))
                    if delta is not None:
                        b = np.zeros((delta.b.shape[0], target.outputs), np.float32)
                        b[:, start : start + width] = delta.b * np.float32(adapter.weight)
                        left.append(delta.a)
                        right.append(b)
                    start += width
            if left:
                made[target.a] = _converted(np.concatenate(left, 1), target)
                made[target.b] = _converted(np.concatenate(right, 0), target)
        return made

    def _check(self, folder: Path, place: tuple[int, str], delta: Delta) -> None:
        layer, module = place
        name = f"layer {layer}, {module}"
        fused = next((whole for whole, parts in _FUSED.items() if module in parts), module)
        target = self._targets.get(place) or self._targets.get((layer, fused))
        if target is None:
            refuse(folder, f"it changes {name}, which the model does not have or cannot change")
        wanted = (target.inputs, self._width(target, module))
        if (delta.a.shape[0], delta.b.shape[1]) != wanted:
            refuse(
                folder,
                f"{name} is of the shape {delta.a.shape[0]} to {delta.b.shape[1]}, the model's is "
                f"{wanted[0]} to {wanted[1]}",
            )
        if not (np.isfinite(delta.a).all() and np.isfinite(delta.b).all()):
            refuse(folder, f"{name} has numbers that are infinite or none")

    def _width(self, target: Target, module: str) -> int:
        """Outputs of a module that may be a part of the target."""
        if target.module == "qkv_proj":
            return target.outputs - 2 * self._pairs if module == "q_proj" else self._pairs
        return target.outputs // (2 if target.module == "gate_up_proj" else 1)


def uses(name: str) -> Callable[[Hashable], bool]:
    """Tells the sets that have an adapter."""
    return lambda key: (
        isinstance(key, tuple)
        and any(isinstance(one, AdapterWeight) and one.name == name for one in key)
    )


def _dtype(target: Target) -> type[np.generic]:
    return np.float16 if target.kind == FLOAT16 else np.float32


def _converted(matrix: Array, target: Target) -> Array:
    return np.ascontiguousarray(matrix, _dtype(target))


def _misused(what: str) -> InternalError:
    return InternalError(f"The runner was called wrongly: {what}.", plugin="onnx")
