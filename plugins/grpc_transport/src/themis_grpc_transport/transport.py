"""`GrpcTransport`: serves and connects, for `grpc` and for `grpcs`."""

from __future__ import annotations

import asyncio

import grpc.aio
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from themis_core.contracts import Backend, BackendServer
from themis_core.protocol import ClientOptions, Connection, RemoteBackend, ServerOptions
from themis_core.worker.socket_path import give_up
from themis_grpc_transport.address import Address, parse
from themis_grpc_transport.channels import Port, make_server, open_channel
from themis_grpc_transport.client import CallingBackend
from themis_grpc_transport.service import Inference, Worker
from themis_grpc_transport.statuses import unreachable
from themis_grpc_transport.stream import Ending, StreamConnection
from themis_grpc_transport.v1 import themis_pb2 as pb
from themis_grpc_transport.v1 import themis_pb2_grpc as services

_SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcTransport:
    """TCP, with TLS for `grpcs`, or a Unix domain socket."""

    def __init__(
        self,
        scheme: str,
        *,
        client: ClientOptions | None = None,
        server: ServerOptions | None = None,
    ) -> None:
        self._scheme = scheme
        self._client = client or ClientOptions()
        self._server = server or ServerOptions()

    async def serve(self, backend: Backend, url: str) -> BackendServer:
        """Offer a started backend. Raises `ConfigInvalid` for a URL it cannot use."""
        server = GrpcServer(backend, parse(url, self._scheme), self._server)
        await server.start()
        return server

    def connect(self, url: str) -> Backend:
        """The backend at a URL. Raises `ConfigInvalid` for one it cannot use."""
        address = parse(url, self._scheme)
        if address.per_request:
            return CallingBackend(address, self._client, self._scheme)

        async def dial() -> Connection:
            return await _dial(address)

        return RemoteBackend(dial, address.url, self._client, plugin=self._scheme)


class GrpcServer:
    """A backend being offered, through `Inference` and through `Worker`."""

    def __init__(self, backend: Backend, address: Address, options: ServerOptions) -> None:
        self._address = address
        self._server = make_server(address)
        limit = min(options.max_in_flight, address.max_streams)
        self._inference = Inference(backend, limit)
        self._worker = Worker(backend, msgspec.structs.replace(options, max_in_flight=limit))
        self._health = health.HealthServicer()
        self._port: Port | None = None

    @property
    def url(self) -> str:
        """Where clients reach it, with the real port."""
        address = self._address
        if address.path is not None or self._port is None:
            return address.url
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{'grpcs' if address.secure else 'grpc'}://{host}:{self._port.port}"

    async def start(self) -> None:
        """Begin to accept."""
        server = self._server
        services.add_InferenceServicer_to_server(self._inference, server)
        services.add_WorkerServicer_to_server(self._worker, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_SERVICES, HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await self._tell_health(serving=True)
        self._port = Port(server, self._address)
        starting = asyncio.create_task(server.start())
        try:
            # Shielded: a server whose start was cancelled in the middle cannot be stopped.
            await asyncio.shield(starting)
        except BaseException:
            await asyncio.wait([starting])
            await self.aclose()
            raise

    async def drain(self) -> None:
        """Accept nobody and nothing new, and wait until what runs is finished."""
        self._unbind()
        await self._tell_health(serving=False)
        await asyncio.gather(self._worker.drained(), self._inference.drained())

    async def aclose(self) -> None:
        """Stop serving and cancel the requests of all clients; leaves the backend open."""
        self._unbind()
        await self._worker.aclose()
        await self._server.stop(None)
        await asyncio.sleep(0)  # gRPC has a task of its own for each call, which ends a turn later.

    def _unbind(self) -> None:
        port, path = self._port, self._address.path
        if port is not None and path is not None and port.inode:
            give_up(path, port.inode)
            port.inode = 0

    async def _tell_health(self, *, serving: bool) -> None:
        for name in ("", *_SERVICES):
            await self._health.set(name, _SERVING if serving else _NOT_SERVING)


async def _dial(address: Address) -> Connection:
    """Raises `BackendFailed`."""
    channel = open_channel(address)
    try:
        call = services.WorkerStub(channel).Connect()
        await call.wait_for_connection()
    except BaseException as error:
        await channel.close()
        if isinstance(error, grpc.aio.AioRpcError):
            raise unreachable(error, address) from error
        raise

    return StreamConnection(call.read, call.write, Ending(call.done_writing, channel.close))
