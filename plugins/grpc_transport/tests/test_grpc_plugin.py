"""Describing the transports imports none of them; settings and URLs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from themis_core.errors import ConfigInvalid
from themis_core.hooks import BackendPlugin, TransportPlugin
from themis_core.plugins import Registry, make
from themis_core.protocol import RemoteBackend
from themis_grpc_transport.address import DEFAULT_MESSAGE, MIB, parse
from themis_grpc_transport.client import CallingBackend
from themis_grpc_transport.create import url_of
from themis_grpc_transport.plugin import GrpcSettings, GrpcsSettings
from themis_grpc_transport.transport import GrpcTransport


def test_describing_imports_no_transport() -> None:
    code = (
        "import themis_grpc_transport.plugin as p, sys; p.themis_transports(); "
        "p.themis_backends(); assert not {'asyncio', 'grpc', 'google.protobuf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_setting_is_described() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in GrpcsSettings.__struct_fields__:
        assert f"`{name}`" in readme


def test_both_names_are_transports_and_backends() -> None:
    registry = Registry()
    for name in ("grpc", "grpcs"):
        found = registry.find("transports", name, TransportPlugin)
        assert isinstance(make(found, found.settings()), GrpcTransport)
        backend = registry.find("backends", name, BackendPlugin)
        made = make(backend, backend.settings(address="example.org:4443"))
        assert isinstance(made, RemoteBackend)
        assert made._where == f"{name}://example.org:4443"
        called = make(backend, backend.settings(address="example.org:4443", per_request=True))
        assert isinstance(called, CallingBackend)


def test_settings_become_a_url() -> None:
    settings = GrpcsSettings(
        address="[::1]:5",
        ca="/a b/ca.pem",
        certificate="/c.pem",
        key="/k.pem",
        server_name="x",
        max_message_mib=3,
    )
    address = parse(url_of("grpcs", settings), "grpcs")
    assert (address.host, address.port, address.target) == ("::1", 5, "[::1]:5")
    assert (address.ca, address.certificate, address.key) == tuple(
        map(Path, ("/a b/ca.pem", "/c.pem", "/k.pem"))
    )
    assert (address.server_name, address.max_message) == ("x", 3 * MIB)
    plain = parse(url_of("grpc", GrpcSettings(address="/run/a b.sock")), "grpc")
    assert plain.path == Path("/run/a b.sock")
    assert plain.max_message == DEFAULT_MESSAGE


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("grpcs://h:1", "scheme"),
        ("grpc://h", "a host and a port"),
        ("grpc://", "a host and a port"),
        ("grpc://h:99999", "(?i)port"),
        ("grpc://h:1/path", "both a host and a path"),
        ("grpc:///folder/", "absolute path"),
        ("grpc:///" + "x" * 200, "longer than"),
        ("grpc://me@h:1", "user"),
        ("grpc://h:1?ca=x", "ca is not known"),
        ("grpc://h:1?max_message_mib=0", "between 1 and 2047"),
        ("grpc://h:1?max_message_mib=x", "between 1 and 2047"),
        ("grpc://h:1?per_request=yes", "neither 0 nor 1"),
    ],
)
def test_urls_that_mean_nothing(url: str, why: str) -> None:
    with pytest.raises(ConfigInvalid, match=why):
        parse(url, "grpc")


@pytest.mark.parametrize(
    ("url", "why"),
    [("grpcs:///a.sock", "needs no TLS"), ("grpcs://h:1?key=/k", "belong together")],
)
def test_urls_of_tls_that_mean_nothing(url: str, why: str) -> None:
    with pytest.raises(ConfigInvalid, match=why):
        parse(url, "grpcs")
