"""Secrets: references are looked up, all at once, and nothing tells what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from themis_core.config import effective, load, resolved
from themis_core.config.secrets import Secret, plain, resealed, resolve
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry
from themis_core.worker.spec import Spec

from .config_plugin import problems

Writer = Callable[[str], Path]


SECRETS = """
[models.a]
backend = "mine"
token = "env:THE_TOKEN"
tokens = ["file:{file}", "plain-secret"]
peer = {{ host = "h", token = "peer-secret" }}
[models.a.peers]
x = {{ host = "h", token = "env:THE_TOKEN" }}
"""


def test_secrets(
    registry: Registry, write_config: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    config = load(write_config(SECRETS.format(file=file)), registry, {})
    model = config.models["a"]
    shown = json.dumps([entry.value for entry in effective(config)])
    assert "env:THE_TOKEN" in shown
    monkeypatch.setenv("THE_TOKEN", "from-environment")
    settings: Any = resolve(model.settings, "models.a", config.places, config.source)
    assert settings.token == "from-environment"
    assert settings.tokens == ("from-file", "plain-secret")
    assert settings.peers["x"].token == "from-environment"
    for text in (shown, repr(config), repr(settings), str(settings)):
        for secret in ("plain-secret", "peer-secret", "from-file", "from-environment"):
            assert secret not in text
    assert isinstance(settings.token, str)
    assert f"{settings.token}" == "from-environment"
    assert repr(Secret("x")) == "'(hidden)'"


def test_secrets_that_are_not_there(
    registry: Registry, write_config: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THE_TOKEN", raising=False)
    path = write_config(SECRETS.format(file="/no/such/file"))
    config = load(path, registry, {})
    with pytest.raises(ConfigInvalid) as caught:
        resolve(config.models["a"].settings, "models.a", config.places, config.source)
    found = [str(problem) for problem in caught.value.problems]
    assert found[0].startswith(f"{path}:4: models.a.token: the environment variable 'THE_TOKEN'")
    assert f"{path}:5: models.a.tokens: the file '/no/such/file' cannot be read" in found[1]
    assert "models.a.peers.x.token" in found[2]


def test_all_missing_secrets_come_at_once(
    registry: Registry, write_config: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THE_TOKEN", raising=False)
    table = 'backend = "mine"\ntoken = "env:THE_TOKEN"\n'
    path = write_config(f"[models.a]\n{table}[models.b]\n{table}")
    config = load(path, registry, {})
    with pytest.raises(ConfigInvalid) as caught:
        resolved(config)
    assert [(p.line, p.key) for p in caught.value.problems] == [
        (3, "models.a.token"),
        (6, "models.b.token"),
    ]
    monkeypatch.setenv("THE_TOKEN", "s3cret")
    settings: Any = resolved(config).models["b"].settings
    assert settings.token == "s3cret"
    assert "s3cret" not in repr(resolved(config))


def test_a_worker_gets_secrets_that_it_does_not_tell(
    registry: Registry, write_config: Writer
) -> None:
    line = 'token = "s3cret"\npeers = {x = {host = "h", token = "s3cret"}}\n'
    path = write_config(f'[models.a]\nbackend = "mine"\n{line}tokens = ["s3cret"]\n')
    model = load(path, registry, {}).models["a"]
    data = msgspec.to_builtins(model.settings, enc_hook=plain)
    spec = Spec(model="a", backend="mine", settings=data, transport="shm")
    assert "s3cret" not in repr(spec)
    sent = msgspec.json.decode(msgspec.json.encode(spec), type=Spec)
    received = msgspec.convert(sent.settings, type(model.settings))
    assert "s3cret" in repr(received)
    assert "s3cret" not in repr(resealed(received))
    assert resealed(received) == received == model.settings


@pytest.mark.parametrize(
    "line",
    ['token = ["s3cret"]', 'peers = { x = { host = 3, token = "s3cret" } }', 'tokn = "s3cret"'],
)
def test_secrets_stay_out_of_problems(registry: Registry, write_config: Writer, line: str) -> None:
    path = write_config(f'[models.a]\nbackend = "mine"\n{line}\n')
    with pytest.raises(ConfigInvalid) as caught:
        load(path, registry, {})
    assert "s3cret" not in str(caught.value) + repr(caught.value.problems)


def test_a_plugin_cannot_tell_a_secret(registry: Registry, write_config: Writer) -> None:
    path = write_config('[models.a]\nbackend = "mine"\ntoken = "wrong-one"\n')
    assert problems(path, registry) == [f"{path}:1: models.a: (hidden) is no token"]
