"""`themis run`: one prompt, one answer."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any

import click

import themis_core
from themis_core.cli.options import (
    config_option,
    conversation,
    json_option,
    model_option,
    sampling,
    sampling_options,
)
from themis_core.cli.progress import loading
from themis_core.messages import Completion, Delta, GenerateRequest


@click.command()
@click.argument("prompt")
@config_option
@model_option
@click.option("-s", "--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Complete the prompt as it is, without chat template.")
@sampling_options
@json_option
def run(
    prompt: str,
    config_path: str | None,
    model: str,
    system: str | None,
    raw: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer PROMPT (or standard input, if PROMPT is "-")."""
    text = sys.stdin.read() if prompt == "-" else prompt
    if raw and system:
        raise click.UsageError("--system needs the chat template, which --raw leaves out.")
    request = GenerateRequest(
        model=model,
        prompt=text if raw else None,
        messages=() if raw else conversation(text, system),
        sampling=sampling(**options),
    )
    asyncio.run(_run(config_path, request, as_json))


async def _run(config_path: str | None, request: GenerateRequest, as_json: bool) -> None:
    async with themis_core.open(config_path) as runtime:
        with loading(request.model):
            await runtime.model_info(request.model)
        if as_json:
            click.echo(json.dumps(_plain(await runtime.complete(request))))
            return
        async with aclosing(runtime.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    click.echo(event.text, nl=False)
        click.echo()


def _plain(completion: Completion) -> dict[str, Any]:
    choice = completion.choices[0]
    return {
        "model": completion.model,
        "text": choice.text,
        "finish_reason": choice.finish_reason,
        "usage": {
            "prompt_tokens": completion.usage.prompt_tokens,
            "completion_tokens": completion.usage.completion_tokens,
            "total_tokens": completion.usage.total_tokens,
        },
    }
