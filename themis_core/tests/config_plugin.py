"""A backend with settings of every shape, and the problems of a configuration, for its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from themis_core.config import load
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry

BACKEND = """
from typing import Annotated, Literal
import msgspec
from themis_core.hooks import BackendPlugin, hookimpl

Token = Annotated[str, msgspec.Meta(min_length=3, extra={"secret": True})]
Tokens = Annotated[tuple[str, ...], msgspec.Meta(extra={"secret": True})]

class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    token: Token = "none"

class Settings(msgspec.Struct, frozen=True, kw_only=True):
    path: Annotated[str, msgspec.Meta(description="The model file.")] = "m.bin"
    context: Annotated[int, msgspec.Meta(ge=1)] = 512
    token: Token = "none"
    tokens: Tokens = ()
    peer: Peer = Peer("here")
    peers: dict[str, str | Peer] = {}
    several: Annotated[tuple[Peer, ...], msgspec.Meta(description="Peers.")] = ()
    kind: Annotated[Literal["large", "small"] | None, msgspec.Meta(description="How big.")] = None
    either: Peer | None = None

    def __post_init__(self):
        if self.token == "wrong-one":
            raise ValueError(f"{self.token} is no token")

@hookimpl
def themis_backends():
    factory = "{module}:create"
    return [BackendPlugin(name="{name}", help="A test.", settings=Settings, factory=factory)]
"""


def problems(path: Path, registry: Registry, **environment: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        load(path, registry, environment)
    assert str(path) in str(caught.value) or environment
    return [str(problem) for problem in caught.value.problems]
