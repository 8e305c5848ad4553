"""The one error tree. Every failure that a caller can meet is a `ThemisError`.

An error has a stable `code` (documented in `docs/errors.md`), says whether the same request may
succeed later (`retryable`), and may name the `plugin` it came from, the `field` at fault and a
`remedy`. Plugins translate what their libraries raise at their own edge and keep the original as
`__cause__`. HTTP and gRPC statuses and exit codes map from `code`, never from text.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ThemisError(Exception):
    """Base of all errors. `str(error)` is a readable sentence, with the remedy if there is one."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        plugin: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy
        self.plugin = plugin

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default copying and pickling of exceptions.
        return (_rebuild, (type(self), self.__dict__))

    def to_dict(self) -> dict[str, Any]:
        """The error as plain data, for `--json`, HTTP bodies and logs."""
        return {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "field": self.field,
            "plugin": self.plugin,
            "retryable": self.retryable,
        }


def _rebuild(cls: type[ThemisError], state: dict[str, Any]) -> ThemisError:
    error = cls.__new__(cls, state["message"])
    error.__dict__.update(state)
    return error


class InternalError(ThemisError):
    """A defect in Themis or a plugin: nothing that the caller did explains it."""


# --- the request ---------------------------------------------------------------------------------


class InvalidRequest(ThemisError):
    """A request field has a value that no backend could honour."""

    code = "invalid_request"


class UnsupportedField(ThemisError):
    """The request asks for something that the chosen backend cannot do."""

    code = "unsupported_field"


class PromptTooLong(ThemisError):
    """The prompt, or the prompt plus `max_tokens`, exceeds the model's context."""

    code = "prompt_too_long"


class RequestTooLarge(ThemisError):
    """The request could never fit in the configured KV cache, however long it waited."""

    code = "request_too_large"


class ModelNotFound(ThemisError):
    """No configured model or alias has this name."""

    code = "model_not_found"


class AdapterNotFound(ThemisError):
    """The request names an adapter that the model has not loaded."""

    code = "adapter_not_found"


class RequestRejected(ThemisError):
    """A validator refused the prompt or the answer."""

    code = "request_rejected"


class RequestPoisonous(RequestRejected):
    """The request ended its worker process twice, running alone; it is not tried again."""

    code = "request_poisonous"


class QuotaExceeded(ThemisError):
    """The tenant or the model has used up its quota."""

    code = "quota_exceeded"
    retryable = True


class DeadlineExceeded(ThemisError):
    """The request's own time limit passed before it was finished."""

    code = "deadline_exceeded"


class Overloaded(ThemisError):
    """The queue is full; nothing was started."""

    code = "overloaded"
    retryable = True


class HookTimeout(ThemisError):
    """A validator, quota or cache did not answer within its budget, and its mode is closed."""

    code = "hook_timeout"
    retryable = True


# --- the model -----------------------------------------------------------------------------------


class ModelFileInvalid(ThemisError):
    """A model file is missing, truncated, damaged or of a kind that the backend cannot read."""

    code = "model_file_invalid"


class ModelLoadFailed(ThemisError):
    """The model file is readable, but the model could not be started."""

    code = "model_load_failed"


class BackendFailed(ThemisError):
    """The backend failed while it worked on a request."""

    code = "backend_failed"
    retryable = True


class BackendClosed(ThemisError):
    """The backend was closed before or while it worked on a request."""

    code = "backend_closed"
    retryable = True


# --- the assembly --------------------------------------------------------------------------------


class ConfigInvalid(ThemisError):
    """The configuration has problems; `problems` lists all of them."""

    code = "config_invalid"

    def __init__(self, message: str, *, problems: tuple[Any, ...] = (), **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  {problem}" for problem in self.problems)])


class PluginNotFound(ThemisError):
    """The configuration names a plugin that no installed distribution provides."""

    code = "plugin_not_found"


class PluginConflict(ThemisError):
    """Two distributions provide a plugin of the same name."""

    code = "plugin_conflict"


class PluginFailed(ThemisError):
    """A plugin could not be imported or registered, or its factory raised."""

    code = "plugin_failed"


class PluginIncompatible(ThemisError):
    """The plugin was made for another version of the plugin API."""

    code = "plugin_incompatible"


class PluginLocked(ThemisError):
    """The lock does not list the plugin, or what is installed differs from what it lists."""

    code = "plugin_locked"


def all_error_types() -> tuple[type[ThemisError], ...]:
    """Every class of the tree, base first, in order of definition."""

    def walk(cls: type[ThemisError]) -> list[type[ThemisError]]:
        return [cls, *(found for child in cls.__subclasses__() for found in walk(child))]

    return tuple(dict.fromkeys(walk(ThemisError)))
