"""LoRA adapters of one model, and which of them the context computes with."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from themis_core.errors import BackendFailed, InternalError, ModelFileInvalid
from themis_core.messages import AdapterWeight
from themis_llamacpp import adapter_header, log
from themis_llamacpp.gguf_header import Header
from themis_llamacpp.native import lib


class Adapters:
    """The loaded adapters by name. To be closed before the model is freed."""

    def __init__(self, model: Any, header: Header) -> None:
        self._model = model
        self._header = header
        self._loaded: dict[str, Any] = {}
        self._active: tuple[AdapterWeight, ...] = ()

    def load(self, name: str, path: Path) -> None:
        """Load a GGUF file. Raises `ModelFileInvalid` with the true cause."""
        if name in self._loaded:
            raise _misused(f"an adapter {name!r} is loaded already")
        adapter_header.check(path, self._header)
        log.clear()
        adapter = lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise ModelFileInvalid(
                f"llama.cpp cannot use {path} as an adapter of this model: {log.reason()}.",
                field="path",
                plugin="llamacpp",
            )
        self._loaded[name] = adapter

    def unload(self, context: Any, name: str) -> None:
        """Free an adapter, which the context then no longer knows."""
        if name not in self._loaded:
            raise _misused(f"there is no adapter {name!r}")
        if any(adapter.name == name for adapter in self._active):
            self.use(context, ())
        lib.llama_adapter_lora_free(self._loaded.pop(name))

    def use(self, context: Any, adapters: tuple[AdapterWeight, ...]) -> None:
        """From now on compute with these. Changing them makes llama.cpp plan its graph anew."""
        if adapters == self._active:
            return
        names = [adapter.name for adapter in adapters]
        if len(set(names)) < len(names) or not self._loaded.keys() >= set(names):
            raise _misused(f"a batch with the adapters {names}; loaded are {list(self._loaded)}")
        count = len(adapters)
        handles = (lib.llama_adapter_lora_p_ctypes * count)(*(self._loaded[n] for n in names))
        weights = (ctypes.c_float * count)(*(adapter.weight for adapter in adapters))
        log.clear()
        code = lib.llama_set_adapters_lora(context, handles, count, weights)
        if code != 0:
            raise BackendFailed(
                f"llama.cpp could not apply the adapters {names} ({log.reason()}).",
                plugin="llamacpp",
            )
        self._active = adapters

    def close(self) -> None:
        """Free all. The context that used them must be gone. Calling it again does nothing."""
        self._active = ()
        while self._loaded:
            lib.llama_adapter_lora_free(self._loaded.popitem()[1])


def _misused(what: str) -> InternalError:
    return InternalError(f"The runner was called wrongly: {what}.", plugin="llamacpp")
