"""The servers that are compared: each a child process with the same model and threads."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.traffic import Ask

THEMIS = "themis"
PLAIN = "themis, no speculation"
NATIVE = "llama.cpp server"
PYTHON = "llama_cpp.server"
EXAMPLE = "examples/server"


@dataclass(frozen=True, slots=True)
class Setup:
    """What every server must be ready for. `context` is per sequence, in tokens.

    `reuse` says that prompts can begin alike. `settings` are settings of Themis's model.
    """

    model: Path
    context: int
    parallel: int
    threads: int
    reuse: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


class Peer(ABC):
    """A kind of server."""

    name: str
    distributions: ClassVar[tuple[str, ...]]
    ready_path: ClassVar[str] = "/health"

    @abstractmethod
    def command(self, setup: Setup, port: int, folder: Path) -> list[str]:
        """The command line; files that it needs may be written into `folder`."""

    def fields(self, ask: Ask) -> dict[str, Any]:
        """Fields that its API needs to give exactly what is asked for, beside OpenAI's."""
        return {}

    def versions(self) -> dict[str, str]:
        """Installed versions of the packages that are measured."""
        return {name: importlib.metadata.version(name) for name in self.distributions}


class Themis(Peer):
    """`themis serve` with the llama.cpp backend in its own process."""

    distributions = ("themis-core", "themis-engine", "themis-llamacpp", "llama-cpp-python")

    def __init__(self, name: str = THEMIS, **settings: Any) -> None:
        self.name = name
        self._settings = settings

    def command(self, setup: Setup, port: int, folder: Path) -> list[str]:
        """A `themis.toml` with the model, and the server on it."""
        config = themis_config(setup, folder, **self._settings)
        themis = Path(sys.executable).with_name("themis")
        return [str(themis), "serve", "-c", str(config), "--port", str(port)]

    def fields(self, ask: Ask) -> dict[str, Any]:
        """The schema as OpenAI's API has it for chats."""
        if ask.schema is None:
            return {"ignore_eos": True}
        form = {"type": "json_schema", "json_schema": {"name": "record", "schema": ask.schema}}
        return {"response_format": form}


def themis_config(setup: Setup, folder: Path, **more: Any) -> Path:
    """Write a `themis.toml` with the model as `bench`, and as much KV cache as the peers have."""
    settings: dict[str, Any] = {
        "backend": "llamacpp",
        "path": str(setup.model),
        "context": setup.context,
        "parallel": setup.parallel,
        "threads": setup.threads,
        "preload": True,
        **setup.settings,
        **more,
    }
    if settings.get("kv_unified", True):
        # A split cache has a context for each sequence anyway.
        settings = {"kv_tokens": setup.parallel * setup.context, **settings}
    # JSON's strings, numbers and booleans are TOML's too.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    config = folder / "themis.toml"
    config.write_text('default = "bench"\n\n[models.bench]\n' + "".join(lines))
    return config


class Native(Peer):
    """llama.cpp's own C++ server, from the wheel of xllamacpp."""

    name = NATIVE
    distributions = ("xllamacpp",)

    def command(self, setup: Setup, port: int, folder: Path) -> list[str]:
        """A small script that starts the embedded server."""
        settings = {
            "model": str(setup.model),
            "port": port,
            "parallel": setup.parallel,
            "context": setup.context,
            "threads": setup.threads,
            "reuse": setup.reuse,
        }
        script = Path(__file__).with_name("xllamacpp_server.py")
        return [sys.executable, str(script), json.dumps(settings)]

    def fields(self, ask: Ask) -> dict[str, Any]:
        """The schema as its own API has it."""
        return {"ignore_eos": True} if ask.schema is None else {"json_schema": ask.schema}


class LlamaCppPython(Peer):
    """The server that llama-cpp-python brings. It computes one request after the other."""

    name = PYTHON
    distributions = ("llama-cpp-python",)
    ready_path = "/v1/models"

    def command(self, setup: Setup, port: int, folder: Path) -> list[str]:
        """Its defaults, save two that would make it slower and one that breaks answers off."""
        options = {
            "host": "127.0.0.1",
            "port": port,
            "model": setup.model,
            "model_alias": "bench",
            "n_ctx": setup.context,
            "n_threads": setup.threads,
            "n_threads_batch": setup.threads,
            "logits_all": "false",
            "flash_attn": "true",
            "interrupt_requests": "false",
            "verbose": "false",
        }
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        return [sys.executable, "-m", "llama_cpp.server", *arguments]


class LlamaCppPythonExample(Peer):
    """`examples/server/server.py` of llama-cpp-python's source distribution.

    It batches continuously and keeps prefixes in a radix tree.
    """

    name = EXAMPLE
    distributions = ("llama-cpp-python",)
    ready_path = "/healthz"

    def __init__(self, script: Path) -> None:
        self._script = script

    def command(self, setup: Setup, port: int, folder: Path) -> list[str]:
        """A configuration like the examples beside it: their batch, and no logits stored."""
        model = {
            "path": str(setup.model),
            "alias": "bench",
            "n_ctx": setup.parallel * setup.context,
            "n_seq_max": setup.parallel,
            "n_batch": 512,
            "n_ubatch": 512,
            "threads": setup.threads,
            "threads_batch": setup.threads,
            # Split, as the others are, where nothing can be shared.
            "kv_unified": setup.reuse,
            "flash_attn": True,
            "store_logits": False,
        }
        config = folder / "config.json"
        server = {"host": "127.0.0.1", "port": port}
        config.write_text(json.dumps({"server": server, "model": model}))
        return [sys.executable, str(self._script), "-C", str(config)]


def known(example: Path | None) -> dict[str, Peer]:
    """All of them by name; the example only if its file is given."""
    peers: list[Peer] = [
        Themis(),
        Themis(PLAIN, speculation="off"),
        Native(),
        LlamaCppPython(),
        *([] if example is None else [LlamaCppPythonExample(example)]),
    ]
    return {peer.name: peer for peer in peers}
