"""The JSON Schema and the sample: from the same declarations as the loader, and as strict."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_core.cli.main import run_command
from themis_core.config.assemble import _Assembly
from themis_core.config.files import RawConfig
from themis_core.config.sample import sample
from themis_core.config.schema import json_schema
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry

Writer = Callable[[str], Path]


def test_the_schema_knows_every_key(registry: Registry) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    good = '[models.a]\nbackend = "mine"\ncontext = 3\npeer = {host = "h"}\naliases = ["b"]\n'
    assert valid(tomllib.loads(good))
    assert valid(tomllib.loads(f'include = ["x.toml"]\n{good}'))
    for bad in (
        "modells = 1",
        '[models.a]\nbackend = "myne"',
        "[models.a]\ncontext = 3",
        '[models.a]\nbackend = "mine"\ncontxt = 3',
        '[models.a]\nbackend = "mine"\ncontext = 0',
        '[models.a]\nbackend = "mine"\npeer = {host = "h", prot = 3}',
        '[models.a]\nbackend = "mine"\nisolation = "none"\nworker = {resum = true}',
    ):
        assert not valid(tomllib.loads(bad)), bad


GOOD: dict[str, list[Any]] = {
    "path": ["x", ""],
    "context": [1, 512],
    "token": ["abc", "env:X"],
    "tokens": [[], ["a", "b"]],
    "peer": [{"host": "h"}, {"host": "h", "token": "abc"}],
    "peers": [{"x": "y"}, {"x": {"host": "h"}, "y": "z"}],
    "several": [[{"host": "h"}, {"host": "i", "token": "abc"}]],
    "kind": ["large"],
    "either": [{"host": "h"}],
    "aliases": [["b", "c"]],
    "preload": [True],
    "isolation": ["none"],
    "worker": [],
    "nothing": [],
}
VALUES = st.recursive(
    st.sampled_from([0, 1, -1, 1.5, True, "", "x", "large", "none", "worker", "env:X"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["host", "token", "x", "resume"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Good settings, and often one that need not be."""
    names = st.lists(st.sampled_from([name for name in GOOD if GOOD[name]]), unique=True)
    table = {name: draw(st.sampled_from(GOOD[name])) for name in draw(names)}
    if draw(st.booleans()):
        table[draw(st.sampled_from(list(GOOD)))] = draw(VALUES)
    return table


def test_an_editor_never_complains_of_what_loads(registry: Registry) -> None:
    """What the loader takes, the schema takes: they come from the same declarations."""
    jsonschema = pytest.importorskip("jsonschema")
    valid = jsonschema.Draft202012Validator(json_schema(registry)).is_valid
    seen = {True: 0, False: 0}

    @settings(max_examples=300, deadline=None)
    @given(tables())
    def check(table: dict[str, Any]) -> None:
        data: dict[str, Any] = {"models": {"a": {"backend": "mine", **table}}}
        accepted = valid(data)
        seen[accepted] += 1
        try:
            _Assembly(RawConfig(data, "test"), registry).config()
        except ConfigInvalid:
            return
        assert accepted, data

    check()
    assert min(seen.values()) > 10


def test_the_sample_is_valid_in_both_ways(registry: Registry, write_config: Writer) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    text = sample(registry)
    assert text.startswith("#:schema ./themis.schema.json\n")
    tomllib.loads(text)
    # With everything in it that is commented out.
    lines = [line.removeprefix("# ") for line in text.splitlines() if not line.startswith("#  ")]
    used = "\n".join(
        line for line in lines if line.startswith("[") or " = " in line.partition("#")[0]
    )
    data = tomllib.loads(used)
    assert data["models"]["my-mine"]["context"] == 512
    del data["include"]
    jsonschema.Draft202012Validator(json_schema(registry)).validate(data)


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["config", "init"]) == 0
    assert json.loads(Path("themis.schema.json").read_text())["$schema"]
    tomllib.loads(Path("themis.toml").read_text())
    before = Path("themis.toml").read_bytes()
    assert run_command(["config", "init"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert Path("themis.toml").read_bytes() == before
    assert run_command(["config", "init", "--force"]) == 0
    capsys.readouterr()
    assert run_command(["config", "schema"]) == 0
    assert capsys.readouterr().out == Path("themis.schema.json").read_text()
