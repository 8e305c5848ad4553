"""The one door to ONNX Runtime: imported without telemetry, its errors translated.

Its wheels for Linux contain an uploader that, unless told not to, writes a device id and a data
base into the user's home on import and sends to Microsoft. Only the variable below, set before the
import, prevents that; whoever sets it to another value keeps that value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from themis_core.errors import BackendFailed, ModelLoadFailed
from themis_onnx.machine import default_threads

TELEMETRY = "ORT_DISABLE_TELEMETRY"
_SHORT = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONLY_ERRORS_AS_EXCEPTIONS = 4  # log_severity_level "fatal": exceptions carry the message already.


def runtime() -> Any:
    """The module `onnxruntime`. Raises `ModelLoadFailed` if it is not installed."""
    os.environ.setdefault(TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelLoadFailed(
            f"ONNX Runtime cannot be imported: {error}.",
            remedy="Install themis-onnx[cpu] or, for GPUs, themis-onnx[gpu]; never both.",
            plugin="onnx",
        ) from error
    return onnxruntime


def provider_name(provider: str) -> str:
    """The full name of an execution provider."""
    return _SHORT.get(provider, provider)


def session(
    model: Path | bytes, folder: Path, *, provider: str, threads: int | None, what: str
) -> Any:
    """An `InferenceSession` of a file, or of bytes whose weights lie in `folder`.

    Raises `ModelLoadFailed`. A provider that is not really active is an error: ONNX Runtime by
    itself would go on with the processor.
    """
    ort = runtime()
    name = provider_name(provider)
    _check_available(ort, provider, name)
    options = ort.SessionOptions()
    options.log_severity_level = _ONLY_ERRORS_AS_EXCEPTIONS
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the processor from everybody else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(model, bytes):
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    with translated(ModelLoadFailed, f"ONNX Runtime cannot load {what}"):
        made = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=[name]
        )
    active = made.get_providers()[0]
    if active != name:
        raise ModelLoadFailed(
            f"provider is {provider!r}, but ONNX Runtime would compute with {active}.",
            field="provider",
            remedy="Install the provider's libraries (for CUDA: onnxruntime-gpu[cuda,cudnn]), or "
            'set provider to "cpu".',
            plugin="onnx",
        )
    return made


@contextmanager
def translated(
    kind: type[ModelLoadFailed] | type[BackendFailed], what: str, remedy: str | None = None
) -> Iterator[None]:
    """ONNX Runtime's exceptions, which have no common base, become one of ours."""
    try:
        yield
    except MemoryError as error:
        raise kind(f"{what}: there is too little memory.", plugin="onnx") from error
    # It raises RuntimeError, ValueError and a dozen classes that derive from Exception only.
    except Exception as error:
        raise kind(f"{what}: {_reason(error)}.", remedy=remedy, plugin="onnx") from error


def _check_available(ort: Any, provider: str, name: str) -> None:
    available = ort.get_available_providers()
    if name not in available:
        raise ModelLoadFailed(
            f"provider is {provider!r}, which this ONNX Runtime does not have; it has "
            f"{', '.join(available)}.",
            field="provider",
            remedy="Install themis-onnx[gpu] instead of themis-onnx[cpu], or choose one of these.",
            plugin="onnx",
        )


def _reason(error: Exception) -> str:
    """The last part of a message; its beginning is the place in ONNX Runtime's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[-600:].rstrip(".")
