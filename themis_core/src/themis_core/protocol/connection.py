"""What a transport gives the protocol: an ordered connection, and callbacks for what arrives."""

from __future__ import annotations

from typing import Protocol

from themis_core.protocol.frames import Message
from themis_core.protocol.matrix import Allocation


class Receiver(Protocol):
    """Called by a connection, on its event loop."""

    def received(self, message: Message) -> None:
        """A message has come."""
        ...

    def breach(self, reason: str) -> None:
        """What came is no message: nothing more is delivered. The receiver ends the connection."""
        ...

    def writable(self) -> None:
        """The connection was congested, and is no longer."""
        ...

    def lost(self, reason: str) -> None:
        """The connection has ended, whoever ended it: the last call. `reason` is a clause."""
        ...


class Connection(Protocol):
    """Messages to one peer and back. Everything is called on one event loop.

    Messages arrive whole and in order; only large ones may be overtaken by messages with another
    id. Nothing here blocks.
    """

    @property
    def congested(self) -> bool:
        """True while the peer does not keep up: send nothing that can wait."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver. Called once."""
        ...

    def send(self, message: Message) -> None:
        """Queue a message. After the end it does nothing: `lost` tells."""
        ...

    def allocate(self, size: int) -> Allocation | None:
        """Memory whose content reaches the peer without a copy, if there is any left."""
        ...

    def close(self) -> None:
        """End the connection after what was sent. Closing twice is fine."""
        ...

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        ...

    async def wait_closed(self) -> None:
        """Return when nothing of the connection is left."""
        ...
