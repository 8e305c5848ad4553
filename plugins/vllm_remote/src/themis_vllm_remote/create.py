"""The factories: settings in, a `Backend` out. Nothing is connected or loaded before `start`."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import msgspec

from themis_core.contracts import Backend
from themis_core.errors import ConfigInvalid, PluginFailed
from themis_core.plugins import Registry
from themis_core.worker.making import transport_for
from themis_engine.hf_tokenizer import HfTokenizer
from themis_engine.runner import Tokenizer
from themis_vllm_remote.backend import TextsFor, VllmBackend
from themis_vllm_remote.door import Door, Facts
from themis_vllm_remote.endpoints import EndpointOptions, Endpoints
from themis_vllm_remote.fields import CARRIED, SERVER_FIELDS
from themis_vllm_remote.http import address as http_address
from themis_vllm_remote.http.client import ClientOptions, HttpClient
from themis_vllm_remote.http.door import HttpDoor
from themis_vllm_remote.local_texts import LocalTexts
from themis_vllm_remote.probe import check_grammars
from themis_vllm_remote.server_texts import ServerTexts
from themis_vllm_remote.settings import (
    WORKER_SCHEMES,
    EngineSettings,
    VllmSettings,
    scheme_of,
)
from themis_vllm_remote.texts import Texts
from themis_vllm_remote.vocabulary import vocabulary_of

_GRPC = ("grpc", "grpcs")


def remote(settings: VllmSettings) -> Backend:
    """The backend `vllm`. Raises `ConfigInvalid` for endpoints that cannot be used."""
    urls = [settings.endpoint] if isinstance(settings.endpoint, str) else settings.endpoint
    schemes = sorted({scheme_of(url) for url in urls})
    if not urls:
        raise _refuse("The list of endpoints is empty.")
    if len({_family(scheme) for scheme in schemes}) > 1:
        raise _refuse(f"Endpoints of one model are of one kind, not {' and '.join(schemes)}.")
    family = _family(schemes[0])
    if family == "worker":
        return _worker(settings, urls)
    if not {"https", "grpcs"} & set(schemes):
        _only(settings, f"{schemes[0]}://, which has no TLS", "ca", "certificate", "key")
    if family == "grpc":
        return _backend(settings, [_grpc_door(settings, url) for url in urls], "grpc")
    doors: list[Door] = [
        HttpDoor(
            HttpClient(http_address.parse(url), _client_options(settings)),
            settings.model,
            settings.start_timeout,
        )
        for url in urls
    ]
    return _backend(settings, doors, "http")


def engine(settings: EngineSettings) -> Backend:
    """The backend `vllm_engine`."""
    from themis_vllm_remote.engine.backend import create

    return create(settings)


def _backend(settings: VllmSettings, doors: list[Door], kind: str) -> VllmBackend:
    options = EndpointOptions(
        retries=settings.retries,
        breaker_failures=settings.breaker_failures,
        breaker_pause=settings.breaker_pause,
        metrics_interval=settings.metrics_interval,
    )
    endpoints = Endpoints(doors, options)
    return VllmBackend(
        endpoints,
        _texts(settings, endpoints),
        plugin="vllm",
        fields=CARRIED[kind],
        shared_prefixes=settings.prefixes == "shared",
        resumes=max(1, settings.retries) if settings.resume else 0,
    )


def _texts(settings: VllmSettings, door: Door) -> TextsFor:
    async def make(facts: Facts) -> tuple[Facts, Texts]:
        tokenizer = facts.tokenizer
        if settings.tokenizer:
            # In a thread: large vocabularies take a second.
            tokenizer, known = await asyncio.to_thread(_read, settings.tokenizer)
            facts = dataclasses.replace(facts, vocab_size=facts.vocab_size or known)
        if settings.structured == "guidance" and facts.generate:
            await check_grammars(door)
        if tokenizer is None:
            # vLLM forces calls by structural tags, which it cannot give to llguidance.
            unable = {"tool_choice"} if settings.structured == "guidance" else set()
            fields = SERVER_FIELDS - unable
            return facts, ServerTexts(door, facts, fields, settings.structured)
        return facts, LocalTexts(tokenizer, facts, settings.structured)

    return make


def _read(directory: str) -> tuple[Tokenizer, int]:
    folder = Path(directory).expanduser()
    return HfTokenizer(folder), vocabulary_of(folder)


def _client_options(settings: VllmSettings) -> ClientOptions:
    return ClientOptions(
        api_key=str(settings.api_key),
        connect_timeout=settings.connect_timeout,
        stall_timeout=settings.stall_timeout,
        connections=settings.connections,
        ca=settings.ca,
        certificate=settings.certificate,
        key=settings.key,
    )


def _grpc_door(settings: VllmSettings, url: str) -> Door:
    try:
        from themis_vllm_remote.grpc import address
        from themis_vllm_remote.grpc.channel import ChannelOptions
        from themis_vllm_remote.grpc.door import GrpcDoor
    except ImportError as error:
        raise PluginFailed(
            f"gRPC cannot be used: {error}.",
            plugin="vllm",
            remedy="Install themis-vllm-remote[grpc].",
        ) from error
    _only(settings, "gRPC", "model", "api_key", "connections", "connect_timeout")
    options = ChannelOptions(
        start_timeout=settings.start_timeout,
        stall_timeout=settings.stall_timeout,
        ca=settings.ca,
        certificate=settings.certificate,
        key=settings.key,
    )
    return GrpcDoor(address.parse(url), options, bool(settings.tokenizer))


def _worker(settings: VllmSettings, urls: list[str]) -> Backend:
    """A `themis worker` that hosts `vllm_engine`: everything was decided there."""
    if len(urls) > 1:
        raise _refuse("A model has one worker endpoint, not several.")
    others = (field for field in settings.__struct_fields__ if field != "endpoint")
    _only(settings, "a worker", *others)
    # Whether a lock allows this transport was asked when the plugin said that it `uses` it.
    return transport_for(Registry(), urls[0]).connect(urls[0])


def _only(settings: VllmSettings, kind: str, *without: str) -> None:
    """Settings that mean nothing for an endpoint are refused, not ignored."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(settings)}
    useless = [name for name in without if getattr(settings, name) != defaults[name]]
    if useless:
        raise ConfigInvalid(
            f"{', '.join(useless)}: not used for {kind}.",
            field=useless[0],
            remedy="Leave it out.",
            plugin="vllm",
        )


def _family(scheme: str) -> str:
    if scheme in _GRPC:
        return "grpc"
    if scheme in WORKER_SCHEMES:
        return "worker"
    if scheme in http_address.SCHEMES:
        return "http"
    known = ", ".join(
        f"{name}://" for name in (*http_address.SCHEMES, *_GRPC, *sorted(WORKER_SCHEMES))
    )
    raise _refuse(f"An endpoint begins with {scheme!r}, which is none of {known}.")


def _refuse(why: str) -> ConfigInvalid:
    return ConfigInvalid(
        why,
        field="endpoint",
        remedy="Write http://host:8000, grpc://host:50051 or shm:///run/themis/vllm.sock.",
        plugin="vllm",
    )
