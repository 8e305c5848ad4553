"""URLs: `grpc://host:port`, `grpc:///path.sock`, `grpcs://host:port?ca=…&certificate=…&key=…`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from themis_core.errors import ConfigInvalid

MIB = 1 << 20
MAX_PATH = 90  # Of the 107 bytes of sockaddr_un; the rest is for a name while it is bound.
DEFAULT_MESSAGE = 64 * MIB
DEFAULT_STREAMS = 4096
_NUMBERS = {"max_message_mib": 2047, "max_streams": 1 << 20}  # The largest that is allowed.
_FILES = ("ca", "certificate", "key")


class Address(NamedTuple):
    """Where to listen or connect: `host` and `port`, or `path`. `url` is without the options.

    `ca`, `certificate` and `key` are PEM files. `server_name` is the name in the server's
    certificate where it is not the host. `per_request`: the client makes a call of `Inference`
    for each request. `max_message` is in bytes, of one Protobuf message.
    """

    url: str
    host: str
    port: int
    path: Path | None
    secure: bool
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    per_request: bool = False
    max_message: int = DEFAULT_MESSAGE
    max_streams: int = DEFAULT_STREAMS

    @property
    def target(self) -> str:
        """As gRPC writes it."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(url: str, scheme: str) -> Address:
    """Raises `ConfigInvalid`, saying what is wrong with the URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        _refuse(url, str(error))
    if parts.scheme != scheme:
        _refuse(url, f"the scheme is not {scheme}://")
    if parts.fragment or parts.username is not None or parts.password is not None:
        _refuse(url, "it may hold neither a user nor a fragment")
    path = _path(url, unquote(parts.path), host)
    if path is None and (not host or port is None):
        _refuse(url, "it needs a host and a port, or the absolute path of a socket")
    secure = scheme == "grpcs"
    if secure and path is not None:
        _refuse(url, "a Unix socket needs no TLS: its file permissions protect it")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    numbers = {name: _number(url, options, name) for name in _NUMBERS if name in options}
    per_request = options.pop("per_request", "0")
    if per_request not in ("0", "1"):
        _refuse(url, f"per_request={per_request!r} is neither 0 nor 1")
    files = {name: Path(options.pop(name)) for name in _FILES if secure and options.get(name)}
    server_name = options.pop("server_name", "") if secure else ""
    if ("certificate" in files) != ("key" in files):
        _refuse(url, "certificate and key belong together")
    if options:
        _refuse(url, f"{', '.join(sorted(options))} is not known here")
    return Address(
        url=f"{scheme}://{parts.netloc}{parts.path}",
        host=host,
        port=port or 0,
        path=path,
        secure=secure,
        server_name=server_name,
        per_request=per_request == "1",
        max_message=numbers.get("max_message_mib", DEFAULT_MESSAGE // MIB) * MIB,
        max_streams=numbers.get("max_streams", DEFAULT_STREAMS),
        **files,
    )


def _path(url: str, text: str, host: str) -> Path | None:
    if text in ("", "/"):
        return None
    if host:
        _refuse(url, "it has both a host and a path")
    if text.endswith("/"):
        _refuse(url, "it needs the absolute path of a socket")
    if len(text.encode()) > MAX_PATH:
        _refuse(url, f"the path is longer than {MAX_PATH} bytes")
    return Path(text)


def _number(url: str, options: dict[str, str], name: str) -> int:
    text = options.pop(name)
    most = _NUMBERS[name]
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        _refuse(url, f"{name}={text!r} is no number between 1 and {most}")
    return int(text)


def _refuse(url: str, why: str) -> NoReturn:
    raise ConfigInvalid(
        f"The URL {url!r} cannot be used: {why}.",
        field="url",
        remedy="Write grpc://host:port, grpcs://host:port or grpc:///absolute/path.sock.",
        plugin="grpc_transport",
    )
