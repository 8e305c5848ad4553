"""Errors as OpenAI's clients know them: one table from code to HTTP status, and one body shape."""

from __future__ import annotations

import msgspec

from themis_core.errors import ThemisError

Header = tuple[bytes, bytes]

# Every code of `themis_core.errors`; a test compares. A refusal by a validator is 400 and not 403
# because that is what OpenAI answers to content it refuses, and what clients therefore look for.
STATUS: dict[str, int] = {
    "invalid_request": 400,
    "unsupported_field": 400,
    "prompt_too_long": 400,
    "request_too_large": 400,
    "request_rejected": 400,
    "request_poisonous": 400,
    "model_not_found": 404,
    "adapter_not_found": 404,
    "quota_exceeded": 429,
    "internal": 500,
    "backend_failed": 500,
    "model_file_invalid": 500,
    "config_invalid": 500,
    "plugin_not_found": 500,
    "plugin_conflict": 500,
    "plugin_failed": 500,
    "plugin_incompatible": 500,
    "plugin_locked": 500,
    "model_load_failed": 503,
    "backend_closed": 503,
    "overloaded": 503,
    "hook_timeout": 503,
    "deadline_exceeded": 504,
}

RETRY_AFTER_S = b"1"

# Where a core field has another name in OpenAI's bodies; `sampling.` is dropped by rule.
_PARAMS = {
    "prompt_token_ids": "prompt",
    "constraint": "response_format",
    "inputs": "input",
    "template_options": "chat_template_kwargs",
}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One failure, ready to be sent."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: tuple[Header, ...] = ()

    def body(self) -> bytes:
        """The JSON body, in OpenAI's shape."""
        error = {
            "message": self.message,
            "type": _type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})


class HttpError(Exception):
    """A failure of HTTP itself (path, method, key, size), which the core has no code for."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: ThemisError) -> Problem:
    """A core error as a response. A plugin's own code takes the status of the code it refines."""
    status = next(
        STATUS[c.code]
        for c in type(error).__mro__
        if issubclass(c, ThemisError) and c.code in STATUS
    )
    headers: tuple[Header, ...] = ()
    if error.retryable:
        headers = ((b"retry-after", RETRY_AFTER_S), (b"x-should-retry", b"true"))
    elif status >= 500:
        # OpenAI's clients repeat every 5xx unless they are told that it is pointless.
        headers = ((b"x-should-retry", b"false"),)
    return Problem(
        status=status, message=str(error), code=error.code, param=_param(error), headers=headers
    )


INTERNAL = Problem(
    status=500,
    message="The server failed on this request; its log says why.",
    code="internal",
    headers=((b"x-should-retry", b"false"),),
)
CLOSING = Problem(
    status=503,
    message="The server is shutting down.",
    code="backend_closed",
    headers=((b"retry-after", RETRY_AFTER_S), (b"x-should-retry", b"true")),
)


def _param(error: ThemisError) -> str | None:
    if error.field is None:
        return None
    return _PARAMS.get(error.field, error.field.removeprefix("sampling."))


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
