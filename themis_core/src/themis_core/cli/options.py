"""Options that several commands share, and the request that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from themis_core.messages import ChatMessage, SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    help="The configuration file. [default: $THEMIS_CONFIG, ./themis.toml, or the bundled model]",
)
model_option = click.option("-m", "--model", default="", help="A configured model or alias.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def sampling_options(command: F) -> F:
    """How to sample, as `max_tokens`, `temperature`, `top_k`, `top_p`, `seed` and `stop`."""
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
    ]
    for option in reversed(options):
        command = option(command)
    return command


def sampling(
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
) -> SamplingParams:
    """The parameters that `sampling_options` collected. Raises `InvalidRequest`."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )


def conversation(prompt: str, system: str | None) -> tuple[ChatMessage, ...]:
    """A first turn."""
    first = (ChatMessage(role="system", content=system),) if system else ()
    return (*first, ChatMessage(role="user", content=prompt))
