"""Channels to vLLM's gRPC server: options and certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from themis_core.errors import ConfigInvalid
from themis_vllm_remote.grpc.address import GrpcAddress

_KEEPALIVE = 60_000  # Milliseconds; servers end connections that ask more often.


@dataclass(frozen=True)
class ChannelOptions:
    """Timeouts in seconds; PEM files for TLS."""

    start_timeout: float = 30.0
    stall_timeout: float = 300.0
    ca: str = ""
    certificate: str = ""
    key: str = ""


def open_channel(address: GrpcAddress, options: ChannelOptions) -> grpc.aio.Channel:
    """A channel; nothing is connected yet. Raises `ConfigInvalid` for unreadable certificates."""
    arguments: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE),
        # Others in this process that failed to connect must not make this one wait.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Not "min_reconnect_backoff_ms": despite its name it limits a single attempt's time.
        ("grpc.max_reconnect_backoff_ms", 2000),
        # What may be repeated is decided in one place, `Endpoints`.
        ("grpc.enable_retries", 0),
        # A proxy from the environment would see everything, and break Unix sockets.
        ("grpc.enable_http_proxy", 0),
    ]
    if not address.secure:
        return grpc.aio.insecure_channel(address.target, options=arguments)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_content(options.ca),
        private_key=_content(options.key),
        certificate_chain=_content(options.certificate),
    )
    return grpc.aio.secure_channel(address.target, credentials, options=arguments)


def _content(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be read: {error}.", field="ca", plugin="vllm"
        ) from error
