"""What a model says of itself, and errors, to Protobuf and back."""

from __future__ import annotations

import msgspec

from themis_core.messages import OPTIONAL_FIELDS, BackendStats, Capabilities, Histogram, ModelInfo
from themis_core.protocol.failures import Failure
from themis_grpc_transport.fields import read, write
from themis_grpc_transport.v1 import themis_pb2 as pb

_HISTOGRAMS = tuple(
    field.name for field in msgspec.structs.fields(BackendStats) if field.type is Histogram
)


def info_to_proto(info: ModelInfo) -> pb.ModelInfo:
    """Facts about a model."""
    message = write(info, pb.ModelInfo())
    write(info.capabilities, message.capabilities)
    message.capabilities.request_fields.sort()
    return message


def info_from_proto(message: pb.ModelInfo) -> ModelInfo:
    """Request fields that are not known here are left out: nobody here can ask for them."""
    known = OPTIONAL_FIELDS.intersection(message.capabilities.request_fields)
    capabilities = read(message.capabilities, Capabilities, request_fields=known)
    return read(message, ModelInfo, capabilities=capabilities)


def stats_to_proto(stats: BackendStats) -> pb.BackendStats:
    """Counters and gauges."""
    message = write(stats, pb.BackendStats())
    for name in _HISTOGRAMS:
        write(getattr(stats, name), getattr(message, name))
    return message


def stats_from_proto(message: pb.BackendStats) -> BackendStats:
    """Counters and gauges."""
    histograms = {name: read(getattr(message, name), Histogram) for name in _HISTOGRAMS}
    return read(message, BackendStats, **histograms)


def failure_to_proto(failure: Failure) -> pb.Error:
    """An error as data."""
    return write(failure, pb.Error())


def failure_from_proto(message: pb.Error) -> Failure:
    """An error as data."""
    return read(message, Failure)
