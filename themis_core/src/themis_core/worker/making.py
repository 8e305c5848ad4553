"""From a configured model to what runs it: for a worker, or by a worker."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from themis_core.config import ModelConfig
from themis_core.config.secrets import plain
from themis_core.config.settings import WORKER_TRANSPORT
from themis_core.contracts import Transport
from themis_core.errors import ConfigInvalid, PluginNotFound
from themis_core.hooks import NoSettings, TransportPlugin
from themis_core.plugins import Registry, make
from themis_core.worker.isolated import IsolatedBackend
from themis_core.worker.spec import Spec


def isolated_backend(model: ModelConfig, registry: Registry) -> IsolatedBackend:
    """The backend of a model with `isolation = "worker"`; nothing is started yet.

    Raises `PluginNotFound` if the transport to workers is not installed.
    """
    spec = Spec(
        model=model.name,
        backend=model.descriptor.name,
        settings=msgspec.to_builtins(model.settings, enc_hook=plain),  # To a pipe, not to a disk.
        transport=WORKER_TRANSPORT,
        lock=registry.lock,
    )
    transport = find_transport(registry, WORKER_TRANSPORT)
    return IsolatedBackend(spec, transport, model.keys.worker)


def find_transport(registry: Registry, scheme: str) -> Transport:
    """The transport of a URL scheme. Raises `PluginNotFound` and what plugins raise."""
    found = registry.find("transports", scheme, TransportPlugin)
    transport: Transport = make(found, NoSettings())
    return transport


def transport_for(registry: Registry, url: str) -> Transport:
    """The transport that a URL names. Raises `ConfigInvalid` if there is none."""
    scheme = urlsplit(url).scheme
    try:
        return find_transport(registry, scheme)
    except PluginNotFound as error:
        raise ConfigInvalid(
            f"The URL {url!r} cannot be used: {error.message}",
            field="url",
            remedy="Write a URL like shm:///run/user/1000/themis/a.sock, or install its plugin.",
        ) from error
