"""The errors of this plugin, with its name in them."""

from __future__ import annotations

from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    ConfigInvalid,
    InternalError,
    InvalidRequest,
    ModelFileInvalid,
    ModelLoadFailed,
)

PLUGIN = "llamacpp"


def file_invalid(message: str, remedy: str | None = None) -> ModelFileInvalid:
    """The file is at fault."""
    return ModelFileInvalid(message, field="path", remedy=remedy, plugin=PLUGIN)


def load_failed(message: str, remedy: str | None = None, field: str | None = None) -> ModelLoadFailed:
    """The file is fine as far as we see, but the model does not start."""
    return ModelLoadFailed(message, remedy=remedy, field=field, plugin=PLUGIN)


def config_invalid(message: str, field: str) -> ConfigInvalid:
    """A setting contradicts what the model file says."""
    return ConfigInvalid(message, field=field, plugin=PLUGIN)


def failed(message: str, remedy: str | None = None) -> BackendFailed:
    """llama.cpp failed at a batch."""
    return BackendFailed(message, remedy=remedy, plugin=PLUGIN)


def closed() -> BackendClosed:
    """The model has been released."""
    return BackendClosed("The model has been closed.", plugin=PLUGIN)


def misused(message: str) -> InternalError:
    """A call breaks the contract of `ModelRunner`; llama.cpp would end the process."""
    return InternalError(message, plugin=PLUGIN)


def invalid_text(message: str) -> InvalidRequest:
    """A prompt that has no tokens to stand for it."""
    return InvalidRequest(message, field="prompt", plugin=PLUGIN)
