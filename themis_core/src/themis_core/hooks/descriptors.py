"""What a hook returns: the name of a thing, its settings, and where the code that makes it is.

A `factory` is written `"package.module:function"`, as entry points are, and is imported only when
the configuration uses it: describing an engine never imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol, runtime_checkable

import msgspec


class NoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For plugins that have nothing to set."""


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """Common to all families. `name` is the one that the configuration uses.

    `settings` is a frozen `msgspec.Struct` class; every field has a default or is required, and
    says what it means with `Annotated[type, msgspec.Meta(description=…)]`.
    """

    name: str
    help: str
    settings: type[msgspec.Struct] = NoSettings
    factory: str


class BackendPlugin(Descriptor, frozen=True, kw_only=True):
    """`factory(settings) -> Backend`. It may raise `ConfigInvalid`; loading belongs in `start`.

    `uses(settings)` names other plugins that the backend needs with these settings. They are
    loaded before the factory is called: a missing one is found with the configuration, and a lock
    holds for it too.
    """

    uses: Callable[[Any], Collection[str]] = lambda settings: ()


class TransportPlugin(Descriptor, frozen=True, kw_only=True):
    """`factory(settings) -> Transport`. The name is the URL scheme."""


class CachePlugin(Descriptor, frozen=True, kw_only=True):
    """`factory(settings) -> Cache`."""


class QuotaPlugin(Descriptor, frozen=True, kw_only=True):
    """`factory(settings) -> Quota`."""


class ValidatorPlugin(Descriptor, frozen=True, kw_only=True):
    """`factory(settings) -> Validator`."""


@runtime_checkable
class FrontDoor(Protocol):
    """A server through which requests come in."""

    @property
    def url(self) -> str:
        """Where it listens, with the real port. Empty before `start`."""
        ...

    async def start(self) -> None:
        """Bind and begin to accept. Raises `ConfigInvalid` if the address cannot be bound."""
        ...

    async def wait(self) -> None:
        """Return when the server has stopped by itself. Cancelling it leaves the server running."""
        ...

    async def aclose(self) -> None:
        """Stop accepting, let running requests end for a while, then cancel them. Twice is fine."""
        ...


class FrontDoorPlugin(Descriptor, frozen=True, kw_only=True):
    """`factory(settings, runtime, host, port) -> FrontDoor`."""


class BundledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that comes as package data, usable as `source = "<name>"`.

    `backends` gives, best first, the backends that can run it, each with the settings it needs.
    """

    name: str
    help: str
    backends: dict[str, dict[str, Any]]
