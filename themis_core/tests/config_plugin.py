"""A backend with settings of every shape, for the tests of the configuration."""

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
