"""`themis chat`: a conversation in the terminal."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import click

import themis_core
from themis_core.cli.options import config_option, model_option, request_fields, request_options
from themis_core.cli.printing import Printer
from themis_core.cli.progress import loading
from themis_core.errors import ThemisError
from themis_core.messages import ChatMessage, Delta, Done, GenerateRequest
from themis_core.runtime import Runtime

HELP = "/system TEXT sets the system message, /clear forgets, /quit (or Ctrl-D) ends."


@click.command()
@config_option
@model_option
@click.option("-s", "--system", help="The system message.")
@request_options
def chat(config_path: str | None, model: str, system: str | None, **options: Any) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends."""
    with asyncio.Runner() as runner:
        conversation = _Conversation(model, system, request_fields(**options))
        runtime = themis_core.open(config_path)
        runner.run(runtime.start())
        try:
            with loading(model):
                info = runner.run(runtime.model_info(model))
            size = f", {info.parameters / 1e6:.1f} M parameters" if info.parameters else ""
            click.echo(f"{model or 'The default model'} on {info.backend}{size}. {HELP}", err=True)
            while (line := _read()) is not None:
                if line and not conversation.command(line):
                    _answer(runner, runtime, conversation, line)
        finally:
            runner.run(runtime.aclose())


class _Conversation:
    def __init__(self, model: str, system: str | None, fields: dict[str, Any]) -> None:
        self.model = model
        self.fields = fields
        self.messages: list[ChatMessage] = []
        self._set_system(system or "")

    def command(self, line: str) -> bool:
        """Obey a line that is a command; False if it is none."""
        if line == "/quit":
            raise click.exceptions.Exit
        if line == "/clear":
            self._set_system("")
        elif line.startswith("/system "):
            self._set_system(line.removeprefix("/system ").strip())
        elif line.startswith("/"):
            click.echo(f"Unknown command. {HELP}", err=True)
        else:
            return False
        return True

    def request(self, line: str) -> GenerateRequest:
        """The request for the next answer."""
        messages = (*self.messages, ChatMessage(role="user", content=line))
        return GenerateRequest(model=self.model, messages=messages, **self.fields)

    def add(self, line: str, answer: str) -> None:
        """Remember a completed exchange."""
        self.messages += [
            ChatMessage(role="user", content=line),
            ChatMessage(role="assistant", content=answer),
        ]

    def _set_system(self, text: str) -> None:
        self.messages = [ChatMessage(role="system", content=text)] if text else []


def _read() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        click.echo()
        return None


def _answer(
    runner: asyncio.Runner, runtime: Runtime, conversation: _Conversation, line: str
) -> None:
    try:
        answer = runner.run(_stream(runtime, conversation.request(line)))
    except KeyboardInterrupt:
        click.echo(" (stopped)")
    except ThemisError as error:
        # One refused turn (too long, say) does not end the conversation.
        click.echo(f"Error [{error.code}]: {error}", err=True)
    else:
        conversation.add(line, answer)


async def _stream(runtime: Runtime, request: GenerateRequest) -> str:
    parts: list[str] = []
    printer = Printer()
    async with aclosing(runtime.generate(request)) as events:
        async for event in events:
            if isinstance(event, Delta):
                parts.append(event.text)
                printer.show(event)
            elif isinstance(event, Done):
                click.echo()
    return "".join(parts)
