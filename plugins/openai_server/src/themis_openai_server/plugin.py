"""What this distribution offers. Importing it loads no server."""

from __future__ import annotations

from themis_core.hooks import FrontDoorPlugin, hookimpl
from themis_openai_server.settings import OpenAISettings


@hookimpl
def themis_front_doors() -> list[FrontDoorPlugin]:
    """The OpenAI-compatible HTTP server."""
    return [
        FrontDoorPlugin(
            name="openai",
            help="OpenAI-compatible HTTP server: chat, completions, embeddings, streaming by SSE.",
            settings=OpenAISettings,
            factory="themis_openai_server.server:create",
        )
    ]
