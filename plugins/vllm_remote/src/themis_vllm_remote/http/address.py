"""URLs of vLLM's HTTP server: `http://host:port`, `https://host:port`, `http+unix:///path.sock`."""

from __future__ import annotations

from typing import NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from themis_core.errors import ConfigInvalid

SCHEMES = ("http", "https", "http+unix")


class HttpAddress(NamedTuple):
    """`base` is what paths are appended to; `socket` the file of a Unix socket, or empty."""

    url: str
    base: str
    socket: str = ""


def parse(url: str) -> HttpAddress:
    """Raises `ConfigInvalid`, saying what is wrong with the URL."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        _refuse(url, str(error))
    if parts.scheme not in SCHEMES:
        _refuse(url, f"the scheme is none of {', '.join(SCHEMES)}")
    if parts.query or parts.fragment or parts.username is not None:
        _refuse(url, "it may hold no user, no query and no fragment; a key goes into api_key")
    path = unquote(parts.path)
    if parts.scheme == "http+unix":
        if host or not path.startswith("/") or path.endswith("/"):
            _refuse(url, "it needs the absolute path of a socket")
        return HttpAddress(url, "http://localhost", path)
    if not host:
        _refuse(url, "it needs a host")
    # What clients of OpenAI's API are told ends in /v1; vLLM's other routes do not lie there.
    root = parts.path.rstrip("/").removesuffix("/v1")
    return HttpAddress(url, f"{parts.scheme}://{parts.netloc}{root}")


def _refuse(url: str, why: str) -> NoReturn:
    raise ConfigInvalid(
        f"The endpoint {url!r} cannot be used: {why}.",
        field="endpoint",
        remedy="Write http://host:8000, https://host or http+unix:///run/vllm.sock.",
        plugin="vllm",
    )
