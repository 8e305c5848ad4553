"""URLs of vLLM's gRPC server: `grpc://host:port`, `grpcs://host:port`, `grpc:///path.sock:port`."""

from __future__ import annotations

from typing import NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from themis_core.errors import ConfigInvalid

SCHEMES = ("grpc", "grpcs")


class GrpcAddress(NamedTuple):
    """`target` is as gRPC writes it."""

    url: str
    target: str
    secure: bool = False


def parse(url: str) -> GrpcAddress:
    """Raises `ConfigInvalid`, saying what is wrong with the URL.

    A server that was started with `--host unix:/run/v.sock --port 50051` listens at the file
    `/run/v.sock:50051`, which is `grpc:///run/v.sock:50051` here.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        _refuse(url, str(error))
    if parts.scheme not in SCHEMES:
        _refuse(url, f"the scheme is none of {', '.join(SCHEMES)}")
    if parts.query or parts.fragment or parts.username is not None:
        _refuse(url, "it may hold no user, no query and no fragment")
    path = unquote(parts.path)
    if path not in ("", "/"):
        if host or parts.scheme == "grpcs" or path.endswith("/"):
            _refuse(url, "it needs a host and a port, or the absolute path of a socket")
        return GrpcAddress(url, f"unix:{path}")
    if not host or port is None:
        _refuse(url, "it needs a host and a port")
    shown = f"[{host}]" if ":" in host else host
    return GrpcAddress(url, f"{shown}:{port}", parts.scheme == "grpcs")


def _refuse(url: str, why: str) -> NoReturn:
    raise ConfigInvalid(
        f"The endpoint {url!r} cannot be used: {why}.",
        field="endpoint",
        remedy="Write grpc://host:50051, grpcs://host:50051 or grpc:///run/vllm.sock:50051.",
        plugin="vllm",
    )
