"""The bundled model, for `source = "tiny"` and for runs without any configuration."""

from __future__ import annotations

from collections.abc import Sequence

from themis_core.hooks import BundledModel, hookimpl
from themis_tiny_model import path


@hookimpl
def themis_models() -> Sequence[BundledModel]:
    """The one model, on each backend that can run it, best first."""
    return [
        BundledModel(
            name="tiny",
            help="A very small chat model in English and German.",
            backends={
                "llamacpp": {"path": str(path("gguf-f16"))},
                "onnx": {"path": str(path("hf"))},
                "reference": {"path": str(path("hf"))},
            },
        )
    ]
