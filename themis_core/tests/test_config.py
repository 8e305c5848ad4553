"""Configuration: everything declared, all problems at once, each with its key and a remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.config import effective, load
from themis_core.config.assemble import _Assembly
from themis_core.config.sources import RawConfig, leaves, read
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry

from .config_plugin import problems

BACKEND = """
from typing import Annotated
import msgspec
from themis_core.hooks import BackendPlugin, hookimpl

class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    depth: int = 1

class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(description="The model file.")]
    context: Annotated[int, msgspec.Meta(ge=1)] = 512
    token: Annotated[str, msgspec.Meta(extra={"secret": True})] = ""
    inner: Inner = Inner()

    def __post_init__(self):
        if self.path == "bad":
            raise ValueError("path must not be bad")

@hookimpl
def themis_backends():
    return [BackendPlugin(name="{name}", help="", settings=Settings, factory="{module}:create")]
"""

MODEL = """
from themis_core.hooks import BundledModel, hookimpl

@hookimpl
def themis_models():
    return [BundledModel(name="{name}", help="", backends={
        "fast": {"path": "fast.bin"}, "mine": {"path": "mine.bin"}})]
"""

Writer = Callable[[str], Path]


@pytest.fixture
def registry(shelf: Any) -> Registry:
    shelf.install("mine", BACKEND)
    shelf.install("tiny", MODEL)
    found: Registry = shelf.registry()
    return found


def test_a_good_file(registry: Registry, write_config: Writer) -> None:
    path = write_config(
        'default = "b"\n[models.a]\nbackend = "mine"\npath = "x"\ncontext = 9\n'
        'aliases = ["gpt"]\n[models.b]\nsource = "tiny"\npreload = true\n'
    )
    config = load(path, registry, {})
    assert config.default == "b"
    assert config.models["a"].settings.context == 9  # type: ignore[attr-defined]
    assert config.models["a"].keys.aliases == ("gpt",)
    # "fast" is the better backend, but it is not installed.
    assert config.models["b"].descriptor.name == "mine"
    assert config.models["b"].settings.path == "mine.bin"  # type: ignore[attr-defined]
    shown = {entry.key: entry for entry in effective(config)}
    assert shown["models.b.backend"].value == "mine"
    assert shown["models.b.path"].origin == "bundled model tiny"


def test_all_problems_come_at_once(registry: Registry, write_config: Writer) -> None:
    path = write_config(
        'modells = 1\n[models.a]\nbackend = "mine"\ncontxt = 3\ncontext = 0\n'
        '[models.b]\nbackend = "myne"\n[models.c]\nbackend = "mine"\npath = 5\n'
        '[models.d]\n[models.e]\nbackend = "mine"\npath = "x"\ninner = {depht = 1, depth = "z"}\n'
    )
    text = "\n".join(problems(path, registry))
    for expected in (
        "modells: unknown key. Did you mean 'models'?",
        "models.a.contxt: unknown key. Did you mean 'context'?",
        "models.a.context: Expected `int` >= 1 (the value is 0).",
        "models.a.path: is missing. The model file.",
        "models.b.backend: No installed plugin is called 'myne'. Did you mean 'mine'?",
        "models.c.path: Expected `str`, got `int` (the value is 5).",
        "models.d.backend: is missing. Give backend, or source.",
        "models.e.inner.depht: unknown key. Did you mean 'depth'?",
        "models.e.inner.depth: Expected `int`, got `str`",
    ):
        assert expected in text
    assert text.count("\n") == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[models.a]\nbackend = "mine"\npath = "bad"', "models.a: path must not be bad"),
        ('default = "x"\n[models.a]\nbackend = "mine"\npath = "p"', "default: 'x' is not a"),
        ("models = 3", "models: must be a table"),
        ("[models]\na = 3", "models.a: must be a table"),
        ('[models.a]\nsource = "tinny"', "models.a.source: No installed plugin"),
        ('[models.a]\nsource = "tiny"\nbackend = "tiny"', "cannot run on 'tiny'"),
        ('[models.a]\nbackend = "tiny"', "models.a.backend: Plugin 'tiny' offers models"),
        ('[models.a]\nsource = "tiny"\naliases = ["b"]\n[models.b]\nsource = "tiny"', "'b' is al"),
        ('[quota]\nuse = "nothing"', "quota.use: No installed plugin"),
        ("[validators.x]\n", "validators.x.use: is missing"),
        ("[server]\nport = 99999", "server.port: Expected `int` <= 65535"),
    ],
)
def test_each_problem_names_its_key(
    registry: Registry, write_config: Writer, text: str, expected: str
) -> None:
    assert any(expected in problem for problem in problems(write_config(text), registry))


def test_files_that_cannot_be_read(
    tmp_path: Path, registry: Registry, write_config: Writer
) -> None:
    assert "does not exist" in problems(tmp_path / "none.toml", registry)[0]
    assert "line 1" in problems(write_config("a = = 1"), registry)[0]
    assert "cannot be read" in problems(tmp_path, registry)[0]
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in problems(binary, registry)[0]


def test_the_environment_overrides_the_file(registry: Registry, write_config: Writer) -> None:
    path = write_config('[models.a]\nbackend = "mine"\npath = "x"\ntoken = "s3cret"\n')
    config = load(path, registry, {"THEMIS_MODELS__A__CONTEXT": "64", "THEMIS_DEFAULT": "a"})
    shown = {entry.key: entry for entry in effective(config)}
    assert shown["models.a.context"].value == 64
    assert shown["models.a.context"].origin == "environment variable THEMIS_MODELS__A__CONTEXT"
    assert shown["models.a.path"].origin == f"{path}:3"
    assert shown["models.a.preload"].origin == "default"
    assert shown["models.a.token"].value == "(hidden)"
    assert "s3cret" not in json.dumps([entry.value for entry in shown.values()])


def test_a_wrong_environment_variable_is_named(registry: Registry, write_config: Writer) -> None:
    path = write_config('[models.a]\nbackend = "mine"\npath = "x"\n')
    found = problems(path, registry, THEMIS_MODELS__A__CONTEXT="many", THEMIS_SERVR__PORT="1")
    assert any(
        "environment variable THEMIS_MODELS__A__CONTEXT: models.a.context" in p for p in found
    )
    assert any("environment variable THEMIS_SERVR__PORT: servr" in p for p in found)


def test_secrets_stay_out_of_errors(registry: Registry, write_config: Writer) -> None:
    path = write_config('[models.a]\nbackend = "mine"\npath = "x"\ntoken = 123456789\n')
    assert "123456789" not in problems(path, registry)[0]


def test_without_a_file_the_bundled_model_is_used(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None, registry, {})
    assert (config.default, list(config.models)) == ("tiny", ["tiny"])
    assert config.source == "built-in defaults"


def test_a_source_without_installed_backend_says_what_to_install(
    shelf: Any, tmp_path: Path, write_config: Writer
) -> None:
    shelf.install("tiny", MODEL)
    found = problems(write_config('[models.a]\nsource = "tiny"'), shelf.registry())
    assert "Install one of: themis-fast, themis-mine." in found[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["models", "server", "default", "quota", "validators", "x"])


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_data_gives_a_configuration_or_problems(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid) as caught:  # Without plugins there can be no model.
        _Assembly(RawConfig(data, "test"), Registry([])).config()
    assert caught.value.problems


@given(st.text(max_size=20))
def test_any_text_may_stand_in_the_environment(text: str) -> None:
    raw = read(None, {"THEMIS_A__B": text})
    assert [key for key, _ in leaves(raw.data)][:1][0].startswith("a.b")


def test_a_misspelt_backend_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "themis.toml"
    file.write_text('[models.a]\nbackand = "echo"\nthreads = 1\n')
    with pytest.raises(ConfigInvalid) as caught:
        load(file, Registry())
    found = {(problem.key, problem.line, problem.remedy) for problem in caught.value.problems}
    assert found == {
        ("models.a.backend", 1, "Give backend, or source."),
        ("models.a.backand", 2, "Did you mean 'backend'?"),
    }
