"""Discovery is quick, settings are documented, and the documentation's table is the code's."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from themis_core.errors import ConfigInvalid
from themis_core.messages import OPTIONAL_FIELDS
from themis_vllm_remote.create import remote
from themis_vllm_remote.fields import NOTES, PATHS, SERVER_FIELDS, honoured, table
from themis_vllm_remote.plugin import themis_backends
from themis_vllm_remote.settings import EngineSettings, VllmSettings

ROOT = Path(__file__).parents[3]


def test_describing_the_backends_does_not_import_them() -> None:
    code = (
        "import themis_vllm_remote.plugin as p, sys; p.themis_backends(); "
        "assert not {'aiohttp', 'grpc', 'vllm', 'numpy', 'themis_engine'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_setting_is_described_and_documented() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for kind in (VllmSettings, EngineSettings):
        for name in kind.__struct_fields__:
            assert f"`{name}`" in readme, name
    assert [backend.settings for backend in themis_backends()] == [VllmSettings, EngineSettings]


def test_settings_can_be_read() -> None:
    """msgspec looks at declarations only when something is converted."""
    assert msgspec.convert({"path": "/m", "context": 5}, EngineSettings).context == 5
    assert msgspec.convert({"endpoint": ["http://a"]}, VllmSettings).endpoint == ["http://a"]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"path": "/m", "context": 0}, EngineSettings)


def test_the_example_is_for_these_settings() -> None:
    folder = ROOT / "examples" / "local-and-vllm"
    for file, kind in (("themis.toml", VllmSettings), ("worker.toml", EngineSettings)):
        model = tomllib.loads((folder / file).read_text())["models"]["large"]
        names = {backend.settings: backend.name for backend in themis_backends()}
        assert model.pop("backend") == names[kind]
        msgspec.convert(model, kind)


def test_the_table_of_fields_is_the_documentations() -> None:
    text = (ROOT / "docs" / "vllm.md").read_text()
    written = text.partition("<!-- fields -->\n")[2].partition("\n<!-- /fields -->")[0]
    assert written == table()


def test_every_field_has_an_answer_on_every_path() -> None:
    """A field that is refused, or honoured otherwise than elsewhere, says why."""
    assert set(NOTES) <= OPTIONAL_FIELDS
    for path in PATHS:
        for name in OPTIONAL_FIELDS - honoured(path):
            assert name in NOTES, name
    assert honoured("http") == SERVER_FIELDS | {"adapters", "cache_salt"}


@pytest.mark.parametrize(
    ("endpoint", "what"),
    [
        ("ftp://host", "'ftp'"),
        ("http://", "needs a host"),
        ("http://[", "Invalid IPv6"),
        ("http://user@host:1", "api_key"),
        ("http://host:x", "Port"),
        ("http+unix://host/run/x", "absolute path"),
        ("grpc://host", "host and a port"),
        ("grpcs:///run/x", "host and a port"),
        ([], "empty"),
        (["http://a:1", "grpc://b:1"], "one kind"),
        (["shm:///run/a.sock", "shm:///run/b.sock"], "not several"),
    ],
)
def test_endpoints_that_cannot_be_used(endpoint: str | list[str], what: str) -> None:
    with pytest.raises(ConfigInvalid, match=what) as caught:
        remote(VllmSettings(endpoint=endpoint))
    assert caught.value.field == "endpoint"


def test_settings_that_an_endpoint_has_no_use_for_are_refused() -> None:
    for settings, name in (
        (VllmSettings(endpoint="shm:///run/a.sock", tokenizer="x"), "tokenizer"),
        (VllmSettings(endpoint="grpc://a:1", api_key="x"), "api_key"),
        (VllmSettings(endpoint="grpc://a:1", ca="x"), "ca"),
        (VllmSettings(endpoint="http://a:1", certificate="x", key="y"), "certificate, key"),
        (VllmSettings(endpoint="http+unix:///run/a.sock", ca="x"), "ca"),
    ):
        with pytest.raises(ConfigInvalid, match=name):
            remote(settings)


@pytest.mark.parametrize(
    ("endpoint", "used"),
    [
        ("http://a:1", set()),
        (["grpc://a:1", "grpcs://b:1"], set()),
        ("shm:///run/a.sock", {"shm"}),
        ("unix:///run/a.sock", {"unix"}),
        ("http://[", set()),
    ],
)
def test_the_transport_of_a_worker_is_named_before_it_is_used(
    endpoint: str | list[str], used: set[str]
) -> None:
    plugin = next(plugin for plugin in themis_backends() if plugin.name == "vllm")
    assert set(plugin.uses(VllmSettings(endpoint=endpoint))) == used
