"""The factories that the descriptors name."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from themis_core.contracts import Backend, Transport
from themis_core.hooks import NoSettings
from themis_grpc_transport.plugin import GrpcSettings, GrpcsSettings
from themis_grpc_transport.transport import GrpcTransport


def grpc(settings: NoSettings) -> Transport:
    """The transport `grpc`."""
    return GrpcTransport("grpc")


def grpcs(settings: NoSettings) -> Transport:
    """The transport `grpcs`."""
    return GrpcTransport("grpcs")


def grpc_backend(settings: GrpcSettings) -> Backend:
    """The model of a worker at an address."""
    return GrpcTransport("grpc").connect(url_of("grpc", settings))


def grpcs_backend(settings: GrpcsSettings) -> Backend:
    """The same with TLS."""
    return GrpcTransport("grpcs").connect(url_of("grpcs", settings))


def url_of(scheme: str, settings: GrpcSettings) -> str:
    """The URL that says what the settings say."""
    options = {
        name: int(value) if isinstance(value, bool) else value
        for name in settings.__struct_fields__
        if name != "address" and (value := getattr(settings, name))
    }
    return f"{scheme}://{quote(settings.address, safe='/:[]')}?{urlencode(options)}"
