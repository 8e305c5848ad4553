"""Channels and ports of gRPC: options, certificates, where to listen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from themis_core.errors import ConfigInvalid
from themis_grpc_transport.address import Address
from themis_grpc_transport.listening import bind

_KEEPALIVE = 20_000  # Milliseconds; how long a host that has vanished can go unnoticed, twice.
_HEADERS = 64 << 10
_SPARE_STREAMS = 64  # Of a connection, for refusing, health and reflection.


def open_channel(address: Address) -> grpc.aio.Channel:
    """A channel; nothing is connected yet. Raises `ConfigInvalid` for unreadable certificates."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", address.max_message),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _HEADERS),
        ("grpc.absolute_max_metadata_size", _HEADERS),
        ("grpc.keepalive_time_ms", _KEEPALIVE),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE),  # Unless told, it waits a minute.
        ("grpc.http2.max_pings_without_data", 0),  # Long prompts are long silences.
        # Others in this process that failed to connect must not make this one wait.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Not "min_reconnect_backoff_ms": despite its name it limits a single attempt's time.
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A request is never sent twice: it may have been the death of the first server.
        ("grpc.enable_retries", 0),
        # A proxy from the environment would see everything, and break Unix sockets.
        ("grpc.enable_http_proxy", 0),
    ]
    if not address.secure:
        return grpc.aio.insecure_channel(address.target, options=options)
    if address.server_name:
        options.append(("grpc.ssl_target_name_override", address.server_name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_content(address.ca),
        private_key=_content(address.key),
        certificate_chain=_content(address.certificate),
    )
    return grpc.aio.secure_channel(address.target, credentials, options=options)


def make_server(address: Address) -> grpc.aio.Server:
    """A server that listens nowhere yet."""
    return grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # Two servers on one port must be an error.
            ("grpc.max_receive_message_length", address.max_message),
            ("grpc.max_send_message_length", -1),  # What is too large is the receiver's to say.
            # Calls above this wait in the client, unseen. Those above `max_streams` are told.
            ("grpc.max_concurrent_streams", address.max_streams + _SPARE_STREAMS),
            ("grpc.keepalive_time_ms", _KEEPALIVE),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE),
            ("grpc.http2.ping_timeout_ms", _KEEPALIVE),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE // 2),
        ]
    )


class Port:
    """Where a server listens: `port` of TCP, or the inode of its socket."""

    def __init__(self, server: grpc.aio.Server, address: Address) -> None:
        """Raises `ConfigInvalid` if it cannot."""
        self.port = self.inode = 0
        if address.path is not None:
            self.inode = bind(address.path, lambda at: _listen(server, f"unix:{at}"))
            return
        try:
            if address.secure:
                credentials = _server_credentials(address)
                self.port = server.add_secure_port(address.target, credentials)
            else:
                self.port = server.add_insecure_port(address.target)
        except RuntimeError as error:
            raise ConfigInvalid(
                f"The server cannot listen at {address.url}: {error}.",
                field="url",
                remedy="Another program may be listening there; choose another port.",
                plugin="grpc_transport",
            ) from error


def _listen(server: grpc.aio.Server, target: str) -> None:
    server.add_insecure_port(target)


def _server_credentials(address: Address) -> grpc.ServerCredentials:
    key, certificate = _content(address.key), _content(address.certificate)
    if key is None or certificate is None:
        raise ConfigInvalid(
            f"To listen at {address.url}, a certificate and its key are needed.",
            field="url",
            remedy="Add ?certificate=server.pem&key=server.key, and &ca=ca.pem to admit only "
            "clients with a certificate of that authority.",
            plugin="grpc_transport",
        )
    ca = _content(address.ca)
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=ca, require_client_auth=ca is not None
    )


def _content(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, str(error)) from error
    if b"-----BEGIN " not in content:
        raise _unreadable(path, "it is not in PEM format")
    return content


def _unreadable(path: Path, why: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"{path} cannot be used as a certificate or key: {why}.",
        field="url",
        plugin="grpc_transport",
    )
