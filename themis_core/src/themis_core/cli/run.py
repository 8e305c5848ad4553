"""`themis run`: one prompt, one answer."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any

import click
import msgspec

import themis_core
from themis_core.cli.options import (
    config_option,
    conversation,
    json_option,
    model_option,
    request_fields,
    request_options,
)
from themis_core.cli.printing import Printer
from themis_core.cli.progress import loading
from themis_core.messages import Completion, Delta, GenerateRequest


@click.command()
@click.argument("prompt")
@config_option
@model_option
@click.option("-s", "--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Complete the prompt as it is, without chat template.")
@click.option("--answers", type=int, default=1, show_default=True, help="How many to write.")
@request_options
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
        **request_fields(**options),
    )
    asyncio.run(_run(config_path, request, as_json))


async def _run(config_path: str | None, request: GenerateRequest, as_json: bool) -> None:
    async with themis_core.open(config_path) as runtime:
        with loading(request.model):
            await runtime.model_info(request.model)
        if as_json:
            click.echo(json.dumps(_plain(await runtime.complete(request))))
            return
        if request.sampling.n > 1:
            for choice in (await runtime.complete(request)).choices:
                click.echo(f"[{choice.index + 1}] {choice.text}")
            return
        printer = Printer()
        async with aclosing(runtime.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    printer.show(event)
        click.echo()


def _plain(completion: Completion) -> dict[str, Any]:
    """All there is; the first answer, which mostly is the only one, above the list of all."""
    first, usage = completion.choices[0], completion.usage
    return {
        "request_id": completion.request_id,
        "model": completion.model,
        "text": first.text,
        "finish_reason": first.finish_reason,
        "choices": msgspec.to_builtins(completion.choices),
        "usage": {
            **msgspec.to_builtins(usage),
            "total_tokens": usage.total_tokens,
        },
    }
