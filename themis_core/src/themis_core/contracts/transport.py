"""A transport: carries a backend across a boundary."""

from __future__ import annotations

from typing import Protocol

from themis_core.contracts.backend import Backend


class BackendServer(Protocol):
    """A backend being offered at `url`."""

    @property
    def url(self) -> str:
        """Where clients reach it, with the real port if port 0 was asked for."""
        ...

    async def drain(self) -> None:
        """Take no more clients and requests, and wait until those in flight are finished."""
        ...

    async def aclose(self) -> None:
        """Stop serving and cancel the requests of all clients; leaves the backend open."""
        ...


class Transport(Protocol):
    """Serves backends at URLs of its scheme, and connects to them."""

    async def serve(self, backend: Backend, url: str) -> BackendServer:
        """Offer a started backend to any number of clients.

        Raises `ConfigInvalid` for a URL it cannot use, or that is in use.
        """
        ...

    def connect(self, url: str) -> Backend:
        """A backend whose work is done at `url`; the connection is made by its `start`.

        Raises `ConfigInvalid` for a URL it cannot use. Its `start` raises `ModelLoadFailed` if
        nobody answers there. A connection that is lost fails the requests in flight with
        `BackendFailed`; its `aclose` leaves the other end as it is.
        """
        ...
