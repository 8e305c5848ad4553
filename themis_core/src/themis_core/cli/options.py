"""Options that several commands share, and the fields of a request that they make."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from themis_core.messages import AdapterWeight, ChatMessage, Constraint, SamplingParams

F = TypeVar("F", bound=Callable[..., Any])


def _adapter(value: str) -> AdapterWeight:
    name, equals, text = value.rpartition("=")
    if not equals:
        name, text = text, "1"
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight):
        raise click.BadParameter(f"{value!r} is not NAME or NAME=WEIGHT, with a number as weight.")
    return AdapterWeight(name=name, weight=weight)


def _json_schema(path: str) -> Constraint:
    try:
        schema = json.loads(_read(path))
    except ValueError as error:
        raise click.BadParameter(f"{path!r} is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise click.BadParameter(f"{path!r} is no JSON Schema: it must be an object.")
    return Constraint(kind="json_schema", value=schema)


def _grammar(path: str) -> Constraint:
    match Path(path).suffix.lower():
        case ".lark":
            return Constraint(kind="lark", value=_read(path))
        case ".gbnf":
            return Constraint(kind="gbnf", value=_read(path))
    raise click.BadParameter(f"{path!r} must be called *.lark or *.gbnf, to tell its kind.")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path!r} cannot be read: {error}.") from error


config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    help="The configuration file. [default: $THEMIS_CONFIG, ./themis.toml, or the bundled model]",
)
model_option = click.option("-m", "--model", default="", help="A configured model or alias.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def request_options(command: F) -> F:
    """How to sample, what the answer must look like, and adapters; see `request_fields`."""
    options = [
        click.option("-n", "--max-tokens", type=int, help="Most tokens to generate."),
        click.option(
            "-t",
            "--temperature",
            type=float,
            default=0.0,
            show_default=True,
            help="0 always takes the most probable token.",
        ),
        click.option("--top-k", type=int, default=0, help="Sample from the k best tokens only."),
        click.option("--top-p", type=float, default=1.0, help="Sample from this mass only."),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="Text that ends the answer; repeatable."),
        click.option(
            "--adapter",
            "adapters",
            type=_adapter,
            metavar="NAME[=WEIGHT]",
            multiple=True,
            help="A LoRA adapter that the model has loaded, and its weight [1]; repeatable.",
        ),
        click.option(
            "--json-schema",
            type=_json_schema,
            metavar="FILE",
            help="Answer in JSON of the schema in this file.",
        ),
        click.option("--regex", help="Answer with a match of this regular expression."),
        click.option("--choice", multiple=True, help="Answer with one of these; repeatable."),
        click.option(
            "--grammar",
            type=_grammar,
            metavar="FILE",
            help="Answer by the grammar in this file, *.lark or *.gbnf.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def request_fields(
    adapters: tuple[AdapterWeight, ...],
    json_schema: Constraint | None,
    regex: str | None,
    choice: tuple[str, ...],
    grammar: Constraint | None,
    answers: int = 1,
    **sampling: Any,
) -> dict[str, Any]:
    """The fields of a `GenerateRequest` that `request_options` collected.

    Raises `InvalidRequest`, or `UsageError` if the answer is constrained in two ways.
    """
    constraints = {
        "--json-schema": json_schema,
        "--regex": None if regex is None else Constraint(kind="regex", value=regex),
        "--choice": Constraint(kind="choice", value=list(choice)) if choice else None,
        "--grammar": grammar,
    }
    given = {option: value for option, value in constraints.items() if value is not None}
    if len(given) > 1:
        raise click.UsageError(f"Only one of {' and '.join(given)} can be given.")
    return {
        "sampling": SamplingParams(n=answers, **sampling),
        "constraint": next(iter(given.values()), None),
        "adapters": adapters,
    }


def conversation(prompt: str, system: str | None) -> tuple[ChatMessage, ...]:
    """A first turn."""
    first = (ChatMessage(role="system", content=system),) if system else ()
    return (*first, ChatMessage(role="user", content=prompt))
