"""What this distribution offers to Themis. Importing it must not import what it describes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from themis_core.hooks import BackendPlugin, TransportPlugin, hookimpl

_Mib = Annotated[
    int, msgspec.Meta(ge=1, le=2047, description="The largest Protobuf message, in MiB.")
]


class GrpcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "grpc"`: a worker that listens at `grpc://`."""

    address: Annotated[
        str,
        msgspec.Meta(min_length=1, description="host:port, or the absolute path of a Unix socket."),
    ]
    per_request: Annotated[
        bool,
        msgspec.Meta(
            description="Make a call for each request, for proxies that distribute calls; "
            "slower than the one long call that is used otherwise."
        ),
    ] = False
    max_message_mib: _Mib = 64


class GrpcsSettings(GrpcSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "grpcs"`: the same with TLS."""

    ca: Annotated[
        str,
        msgspec.Meta(
            description="PEM file of the authority that signed the server's certificate; "
            "empty for the system's."
        ),
    ] = ""
    certificate: Annotated[
        str, msgspec.Meta(description="PEM file of this client's certificate, for mTLS.")
    ] = ""
    key: Annotated[str, msgspec.Meta(description="PEM file of that certificate's key.")] = ""
    server_name: Annotated[
        str,
        msgspec.Meta(description="The name in the server's certificate, where it is not the host."),
    ] = ""


@hookimpl
def themis_transports() -> list[TransportPlugin]:
    """`grpc` and `grpcs`."""
    return [
        TransportPlugin(
            name="grpc",
            help="gRPC over TCP or a Unix domain socket.",
            factory="themis_grpc_transport.create:grpc",
        ),
        TransportPlugin(
            name="grpcs",
            help="gRPC with TLS, and with certificates of the clients.",
            factory="themis_grpc_transport.create:grpcs",
        ),
    ]


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """The models of workers on other hosts."""
    return [
        BackendPlugin(
            name="grpc",
            help="The model of a worker that listens at grpc://.",
            settings=GrpcSettings,
            factory="themis_grpc_transport.create:grpc_backend",
        ),
        BackendPlugin(
            name="grpcs",
            help="The model of a worker that listens at grpcs://.",
            settings=GrpcsSettings,
            factory="themis_grpc_transport.create:grpcs_backend",
        ),
    ]
