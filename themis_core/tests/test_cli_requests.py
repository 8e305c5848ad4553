"""What the options of `themis run` and `themis chat` make of a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from themis_core.cli import run as run_module
from themis_core.cli.main import run_command
from themis_core.cli.printing import Printer
from themis_core.cli.run import _plain
from themis_core.messages import (
    AdapterWeight,
    Choice,
    Completion,
    Constraint,
    Delta,
    GenerateRequest,
    ToolCall,
    Usage,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[GenerateRequest]:
    """The requests that `themis run` would have made."""
    requests: list[GenerateRequest] = []

    async def note(config_path: str | None, request: GenerateRequest, as_json: bool) -> None:
        requests.append(request)

    monkeypatch.setattr(run_module, "_run", note)
    return requests


def test_nothing_is_asked_for_that_was_not_said(asked: list[GenerateRequest]) -> None:
    assert run_command(["run", "hi"]) == 0
    request = asked[0]
    assert (request.constraint, request.adapters, request.sampling.n) == (None, (), 1)


def test_adapters_and_answers(asked: list[GenerateRequest]) -> None:
    words = ["--adapter", "poet", "--adapter", "a=b=-0.5", "--answers", "3", "-n", "7"]
    assert run_command(["run", *words, "hi"]) == 0
    assert asked[0].adapters == (AdapterWeight(name="poet"), AdapterWeight(name="a=b", weight=-0.5))
    assert (asked[0].sampling.n, asked[0].sampling.max_tokens) == (3, 7)


@pytest.mark.parametrize(
    ("option", "content", "expected"),
    [
        ("s.json", json.dumps(SCHEMA), Constraint(kind="json_schema", value=SCHEMA)),
        ("g.lark", 'start: "ä"', Constraint(kind="lark", value='start: "ä"')),
        ("g.GBNF", 'root ::= "a"', Constraint(kind="gbnf", value='root ::= "a"')),
    ],
)
def test_constraints_from_files(
    option: str, content: str, expected: Constraint, tmp_path: Path, asked: list[GenerateRequest]
) -> None:
    path = tmp_path / option
    path.write_text(content, encoding="utf-8")
    flag = "--json-schema" if option.endswith("json") else "--grammar"
    assert run_command(["run", flag, str(path), "hi"]) == 0
    assert asked[0].constraint == expected


def test_constraints_in_words(asked: list[GenerateRequest]) -> None:
    assert run_command(["run", "--regex", "a|b", "hi"]) == 0
    assert run_command(["run", "--choice", "yes", "--choice", "no", "hi"]) == 0
    assert [request.constraint for request in asked] == [
        Constraint(kind="regex", value="a|b"),
        Constraint(kind="choice", value=["yes", "no"]),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter", "a=much"], "'a=much' is not NAME or NAME=WEIGHT"),
        (["--adapter", "a=nan"], "'a=nan' is not NAME"),
        (["--adapter", "=1"], "'=1' is not NAME"),
        (["--json-schema", "no.json"], "'no.json' cannot be read"),
        (["--json-schema", "broken.json"], "'broken.json' is not JSON"),
        (["--json-schema", "list.json"], "must be an object"),
        (["--json-schema", "latin.json"], "'latin.json' cannot be read"),
        (["--grammar", "no.lark"], "'no.lark' cannot be read"),
        (["--grammar", "list.json"], "must be called *.lark or *.gbnf"),
        (["--regex", "a", "--choice", "b"], "Only one of --regex and --choice can be given."),
    ],
)
@pytest.mark.parametrize("command", [["run", "hi"], ["chat"]])
def test_what_makes_no_sense_is_said(
    words: list[str],
    message: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{", encoding="utf-8")
    Path("list.json").write_text("[]", encoding="utf-8")
    Path("latin.json").write_bytes(b'{"a": "\xe4"}')
    assert run_command([*command, *words]) == 2
    # Nothing of this is JSON for scripts, so the words may be wrapped, but not broken.
    assert message in " ".join(capsys.readouterr().err.split())


def test_json_shows_everything() -> None:
    choices = (
        Choice(
            text="a",
            token_ids=(1, 2),
            reasoning="hm",
            finish_reason="tool_calls",
            tool_calls=(ToolCall(id="c", name="f", arguments="{}"),),
        ),
        Choice(index=1, text="b", finish_reason="stop", matched="x"),
    )
    usage = Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=1)
    completion = Completion(request_id="r", model="m", choices=choices, usage=usage)
    shown: dict[str, Any] = json.loads(json.dumps(_plain(completion)))
    assert shown.keys() >= set(Completion.__struct_fields__)
    assert (shown["text"], shown["finish_reason"]) == ("a", "tool_calls")
    for choice, plain in zip(choices, shown["choices"], strict=True):
        assert plain.keys() == set(Choice.__struct_fields__), choice
    assert shown["choices"][0]["tool_calls"] == [{"id": "c", "name": "f", "arguments": "{}"}]
    assert shown["choices"][1]["matched"] == "x"
    assert shown["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "cached_tokens": 1,
        "total_tokens": 3,
    }


def test_thoughts_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    for delta in (Delta(reasoning="well"), Delta(reasoning=", hm"), Delta(text="Pa"), Delta()):
        printer.show(delta)
    printer.show(Delta(text="ris"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("Paris", "well, hm\n")
