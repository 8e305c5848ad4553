"""What goes wrong over HTTP, as errors of Themis: by status, kind and field, never by text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec

from themis_core.errors import (
    BackendFailed,
    InvalidRequest,
    Overloaded,
    RequestTooLarge,
    ThemisError,
)

_BUSY = (429, 503)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raises `BackendFailed` for whatever the connection did."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise lost(where, f"nobody answers there ({error.strerror or error})") from error
    except TimeoutError as error:  # aiohttp's are of this class.
        raise lost(where, "it brings nothing") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise lost(where, f"the connection was lost ({reason})") from error


def lost(where: str, why: str) -> BackendFailed:
    """The server, or the way to it, failed."""
    return BackendFailed(f"vLLM at {where}: {why}.", remedy="Repeat the request.", plugin="vllm")


def failure(status: int, body: bytes, where: str) -> ThemisError:
    """The error of an answer that is none."""
    message, param = _told(body)
    said = f" It says: {message}" if message else ""
    if status in (400, 422):
        return InvalidRequest(
            f"vLLM at {where} refuses the request.{said}", field=param or "prompt", plugin="vllm"
        )
    if status in (401, 403):
        return BackendFailed(
            f"vLLM at {where} does not admit this client.{said}",
            remedy="Set api_key to what the server was given as --api-key.",
            plugin="vllm",
        )
    if status == 413:
        return RequestTooLarge(f"vLLM at {where} takes no request of this size.", plugin="vllm")
    if status in _BUSY:
        return Overloaded(
            f"vLLM at {where} takes nothing now.{said}", remedy="Repeat it later.", plugin="vllm"
        )
    return BackendFailed(
        f"vLLM at {where} answered with status {status}.{said}",
        remedy="Look into the server's log.",
        plugin="vllm",
    )


def _told(body: bytes) -> tuple[str, str | None]:
    """Message and field of an error body, of whatever shape it is."""
    try:
        data: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:300].decode("utf-8", "replace").strip(), None
    error = data.get("error", data.get("detail", "")) if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return str(error)[:1000], None
    param = error.get("param")
    return str(error.get("message", ""))[:1000], param if isinstance(param, str) else None
