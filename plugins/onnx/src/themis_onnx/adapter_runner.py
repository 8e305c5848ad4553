"""A decoder whose graph can be given inputs for LoRA adapters."""

from __future__ import annotations

from pathlib import Path

from themis_core.messages import AdapterWeight
from themis_onnx.adapters import Adapters, uses
from themis_onnx.directory import ModelFiles
from themis_onnx.lora_graph import Target, targets
from themis_onnx.runner import OnnxRunner
from themis_onnx.settings import OnnxSettings


class OnnxAdapterRunner(OnnxRunner):
    """An `AdapterRunner`. Without adapters in the settings, the graph gets its inputs for them with
    the first that is loaded, so that nobody pays for what nobody uses.
    """

    def __init__(self, settings: OnnxSettings, files: ModelFiles) -> None:
        self._targets: list[Target] = targets(files.graph)
        self._ready = bool(settings.adapters)
        # What is fed for no adapter does not depend on how the projections are made up.
        super().__init__(settings, files, Adapters(self._targets, 0).none if self._ready else None)
        first = self._steps.signature.cache[0]
        self._adapters = Adapters(self._targets, first.heads * first.size)

    def load_adapter(self, name: str, path: str) -> None:
        """Load a PEFT directory. The first one takes as long as loading the model.

        Raises `ModelFileInvalid` with the true cause, and `ModelLoadFailed` if ONNX Runtime
        refuses the graph with inputs for adapters.
        """
        self._adapters.load(name, Path(path).expanduser())
        if not self._ready:
            try:
                session = self._session(for_adapters=True)
            except BaseException:
                self._adapters.unload(name)
                raise
            self._steps.replace(session, self._adapters.none)
            self._ready = True

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Sequences that were computed with it must be freed before."""
        self._adapters.unload(name)
        self._steps.forget(uses(name))

    def _use(self, adapters: tuple[AdapterWeight, ...]) -> None:
        self._steps.use(adapters, self._adapters.inputs(adapters) if adapters else {})
