"""Who may ask: API keys, and the web origins whose pages may."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from themis_openai_server.errors import Header, HttpError, Problem


class Keys:
    """The API keys. Only their digests are kept and compared, in constant time."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def tenant(self, authorization: bytes | None) -> str | None:
        """The account of a request: None without keys, else a name that does not tell the key.

        Raises `HttpError` (401) without a valid key.
        """
        if not self._digests:
            return None
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        # No early end: the time must not tell which key was nearly right.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise HttpError(_refusal(bool(key)))
        return given.hex()[:16]


class Origins:
    """The headers of CORS."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def headers(self, origin: bytes | None) -> list[Header]:
        """What allows a page of this origin to read the response; nothing if it may not."""
        if not self._allowed or origin is None:
            return []
        if b"*" not in self._allowed and origin not in self._allowed:
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-request-id, x-themis-ignored-fields"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, asked_headers: bytes) -> list[Header]:
        """The further headers of the answer to a browser that asks beforehand."""
        return [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", asked_headers or b"authorization, content-type"),
            (b"access-control-max-age", b"600"),
        ]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal(given: bool) -> Problem:
    return Problem(
        status=401,
        message=(
            "The API key is not valid."
            if given
            else "No API key was given. Send the header 'Authorization: Bearer <key>'."
        ),
        code="invalid_api_key",
        headers=((b"www-authenticate", b"Bearer"),),
    )
