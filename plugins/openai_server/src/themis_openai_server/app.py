"""The ASGI application: from path and method to a response, and every failure to its error body."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from themis_core.errors import ModelNotFound, ThemisError
from themis_openai_server import convert, metrics, reply
from themis_openai_server.access import Keys, Origins
from themis_openai_server.body import ChatBody, CompletionBody, EmbeddingBody
from themis_openai_server.chunks import ChatChunks, Chunks, TextChunks
from themis_openai_server.convert import Job
from themis_openai_server.decode import B, decode
from themis_openai_server.errors import CLOSING, INTERNAL, HttpError, Problem, problem_of
from themis_openai_server.exchange import ClientGone, Exchange, Receive, Scope, Send
from themis_openai_server.generation import complete, stream
from themis_openai_server.policy import ignored_fields
from themis_openai_server.ports import RuntimePort
from themis_openai_server.settings import OpenAISettings

_log = logging.getLogger("themis.openai_server")

Handler = Callable[[Exchange], Awaitable[None]]
_MODEL_PATH = "/v1/models/"
_MAX_NAMED = 32


class App:
    """Serves one runtime. Called by the HTTP server once for each request."""

    def __init__(self, settings: OpenAISettings, runtime: RuntimePort) -> None:
        self._settings = settings
        self._runtime = runtime
        self._keys = Keys(settings.api_keys)
        self._origins = Origins(settings.allow_origins)
        self._created = int(time.time())
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completions),
            "/v1/embeddings": ("POST", self._embeddings),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whatever becomes of it."""
        exchange = Exchange(scope, receive, send)
        exchange.extra += self._origins.headers(exchange.headers.get(b"origin"))
        try:
            await self._route(exchange)
        except ClientGone:
            return
        except asyncio.CancelledError:
            # The HTTP server cancels requests only when it shuts down and their time is up.
            if not exchange.gone:
                await exchange.fail(CLOSING)
        except HttpError as error:
            await exchange.fail(error.problem)
        except ThemisError as error:
            if problem_of(error).status >= 500:
                _log.warning("%s failed: %s: %s", exchange.path, error.code, error)
            await exchange.fail(problem_of(error))
        # A defect, here or in a plugin: the client learns that much, and the log has the rest.
        except Exception:  # noqa: BLE001
            _log.exception("%s failed.", exchange.path)
            await exchange.fail(INTERNAL)

    async def _route(self, exchange: Exchange) -> None:
        method, handler = self._routes.get(exchange.path, ("GET", None))
        if handler is None and exchange.path.startswith(_MODEL_PATH):
            handler = self._model
        if handler is None:
            raise HttpError(_no_path(exchange.path))
        if exchange.method == "OPTIONS" and self._settings.allow_origins:
            asked = exchange.headers.get(b"access-control-request-headers", b"")
            await exchange.reply(b"", headers=self._origins.preflight(asked))
            return
        if exchange.method != method and (exchange.method, method) != ("HEAD", "GET"):
            raise HttpError(_wrong_method(exchange, method))
        await handler(exchange)

    async def _chat(self, exchange: Exchange) -> None:
        tenant = self._tenant(exchange)
        job = convert.chat_job(await self._body(exchange, ChatBody), tenant)
        await self._generate(exchange, job, ChatChunks, reply.chat_reply)

    async def _completions(self, exchange: Exchange) -> None:
        tenant = self._tenant(exchange)
        job = convert.completion_job(await self._body(exchange, CompletionBody), tenant)
        await self._generate(exchange, job, TextChunks, reply.text_reply)

    async def _generate(
        self,
        exchange: Exchange,
        job: Job,
        chunks: type[Chunks],
        whole: Callable[..., bytes],
    ) -> None:
        exchange.extra.append((b"x-request-id", job.id.encode()))
        model = self._named(job.model)
        created = int(time.time())
        async with exchange.watched():
            if job.stream:
                await stream(exchange, self._runtime, job, chunks(job, model, created))
            else:
                done = await complete(self._runtime, job)
                await exchange.reply(whole(job, model, created, done))

    async def _embeddings(self, exchange: Exchange) -> None:
        tenant = self._tenant(exchange)
        body = await self._body(exchange, EmbeddingBody)
        request = convert.embed_request(body, tenant)
        exchange.extra.append((b"x-request-id", request.request_id.encode()))
        async with exchange.watched():
            response = await self._runtime.embed(request)
            as_base64 = body.encoding_format == "base64"
            await exchange.reply(reply.embed_reply(self._named(request.model), response, as_base64))

    async def _models(self, exchange: Exchange) -> None:
        self._tenant(exchange)
        await exchange.reply(reply.models_reply(self._runtime.models(), self._created))

    async def _model(self, exchange: Exchange) -> None:
        self._tenant(exchange)
        name = exchange.path.removeprefix(_MODEL_PATH)
        body = reply.model_reply(name, self._runtime.models(), self._created)
        if body is None:
            raise ModelNotFound(f"No model is called {name!r}.", field="model")
        await exchange.reply(body)

    async def _health(self, exchange: Exchange) -> None:
        # Without a key, because probes have none; it tells names and states only.
        await exchange.reply(reply.health_reply(self._runtime.models()))

    async def _metrics(self, exchange: Exchange) -> None:
        self._tenant(exchange)
        body = metrics.exposition(await self._runtime.stats(), self._runtime.hook_stats())
        await exchange.reply(body, content_type=metrics.CONTENT_TYPE)

    def _tenant(self, exchange: Exchange) -> str | None:
        return self._keys.tenant(exchange.headers.get(b"authorization"))

    async def _body(self, exchange: Exchange, kind: type[B]) -> B:
        raw = await exchange.read(self._settings.max_body_bytes)
        body, unknown = decode(raw, kind, self._settings.unknown_fields)
        ignored = (*ignored_fields(body), *unknown)
        if ignored:
            exchange.extra.append((b"x-themis-ignored-fields", _header_list(ignored)))
        return body

    def _named(self, model: str) -> str:
        """The model's name in the response: as asked for, or the default model's."""
        return model or self._runtime.default_model


def _header_list(names: tuple[str, ...]) -> bytes:
    """Names from a body may hold anything, line breaks included; a header may not."""
    shown = [quote(name[:100], safe="[]") for name in names[:_MAX_NAMED]]
    more = len(names) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])]).encode("ascii")


def _no_path(path: str) -> Problem:
    return Problem(status=404, message=f"There is nothing at {path!r}.", code="not_found")


def _wrong_method(exchange: Exchange, method: str) -> Problem:
    return Problem(
        status=405,
        message=f"{exchange.path} takes {method}, not {exchange.method}.",
        code="method_not_allowed",
        headers=((b"allow", method.encode()),),
    )
