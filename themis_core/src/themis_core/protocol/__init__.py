"""The worker protocol: a `Backend` carried over any ordered connection.

A transport makes a `Connection` at either end; `serve_backend` answers on one, `RemoteBackend`
asks on the other. `frames` is for transports that have a stream of bytes.
"""

from themis_core.protocol.client import RemoteBackend
from themis_core.protocol.connection import Connection, Receiver
from themis_core.protocol.frames import (
    FIRST_PRIVATE,
    MAX_FRAME,
    MAX_MESSAGE,
    Assembly,
    FrameReader,
    Kind,
    Message,
    ProtocolError,
    announce,
    encode_frame,
    pieces,
    size,
)
from themis_core.protocol.link import ClientOptions
from themis_core.protocol.matrix import Allocation, Matrix
from themis_core.protocol.server import ServerOptions, Session, serve_backend

__all__ = [
    "FIRST_PRIVATE",
    "MAX_FRAME",
    "MAX_MESSAGE",
    "Allocation",
    "Assembly",
    "ClientOptions",
    "Connection",
    "FrameReader",
    "Kind",
    "Matrix",
    "Message",
    "ProtocolError",
    "Receiver",
    "RemoteBackend",
    "ServerOptions",
    "Session",
    "announce",
    "encode_frame",
    "pieces",
    "serve_backend",
    "size",
]
