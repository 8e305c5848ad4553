"""Every failure is OpenAI's error body, with a status from the code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import httpx
import msgspec
import openai
import pytest

from themis_core import errors as core
from themis_core.messages import Delta, Started
from themis_core.worker import WorkerExit, WorkerStatus
from themis_openai_server.body import ChatBody, CompletionBody, EmbeddingBody
from themis_openai_server.errors import STATUS, problem_of
from themis_openai_server.settings import OpenAISettings

from .conftest import WAIT_S, Door, OpenDoor, Stall

# Other tests of the same run may define errors of their own.
CORE_ERRORS = [k for k in core.all_error_types() if k.__module__ == core.__name__]


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_every_code_has_a_status() -> None:
    assert {kind.code for kind in CORE_ERRORS} == set(STATUS)


def test_a_plugins_own_code_takes_its_bases_status() -> None:
    class Special(core.Overloaded):
        code: ClassVar[str] = "special"

    problem = problem_of(Special("Full."))
    assert (problem.status, problem.code) == (503, "special")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", CORE_ERRORS)
def test_each_error(door: Door, kind: type[core.ThemisError], stream: bool) -> None:
    door.runtime.script = [Started(prompt_tokens=1), kind("Sorry.", field="sampling.seed")]
    response = door.chat(stream=stream)
    assert response.status_code == STATUS[kind.code]
    error = error_of(response)
    assert (error["code"], error["param"]) == (kind.code, "seed")
    assert ("retry-after" in response.headers) == kind.retryable
    if response.status_code >= 500:
        assert response.headers["x-should-retry"] == str(kind.retryable).lower()


@pytest.mark.parametrize("stream", [False, True])
def test_a_defect_is_a_500_that_tells_nothing(door: Door, stream: bool) -> None:
    door.runtime.script = [ValueError("secret")]
    response = door.chat(stream=stream)
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal"
    assert "secret" not in response.text


def test_events_without_an_end_are_a_defect(door: Door) -> None:
    door.runtime.script = []
    assert door.chat(stream=True).status_code == 500


def test_error_in_mid_stream(door: Door) -> None:
    door.runtime.script = [
        Started(prompt_tokens=1),
        Delta(text="a", token_ids=(1,)),
        core.BackendFailed("It broke."),
    ]
    response = door.chat(stream=True)
    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert '"content":"a"' in events[1]
    assert events[2].startswith('data: {"error":')
    assert "It broke." in events[2]
    assert events[3] == "data: [DONE]"


def test_the_client_raises_for_an_error_in_mid_stream(door: Door) -> None:
    stall = Stall()
    door.runtime.script = [Delta(text="a", token_ids=(1,)), stall, core.BackendFailed("It broke.")]
    stream = door.client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], stream=True
    )
    chunks = iter(stream)
    assert next(chunks).choices[0].delta.role == "assistant"
    assert next(chunks).choices[0].delta.content == "a"
    stall.release()
    with pytest.raises(openai.APIError, match="It broke"):
        next(chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_one_failing_prompt_fails_and_stops_all(door: Door, stream: bool) -> None:
    bad, good = Stall(), Stall()
    door.runtime.by_prompt = {"bad": [bad, core.Overloaded("Full.")], "good": [good]}
    body = {"model": "m", "prompt": ["bad", "good"], "stream": stream}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(door.post, "/v1/completions", body)
        # Both prompts are under way before the one fails; the other must then be stopped.
        assert good.reached.wait(WAIT_S)
        bad.release()
        assert reply.result(WAIT_S).status_code == 503
    assert door.runtime.closed_early.acquire(timeout=WAIT_S)


def test_unknown_path_and_wrong_method(door: Door) -> None:
    missing = httpx.get(door.url + "/v2/x")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "not_found"
    wrong = httpx.get(door.url + "/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"
    assert door.post("/health", {}).status_code == 405
    assert httpx.head(door.url + "/health").status_code == 200


def test_health_touches_no_model(door: Door) -> None:
    response = httpx.get(door.url + "/health")
    assert response.json() == {
        "status": "ok",
        "models": [{"name": "m", "backend": "scripted", "state": "ready"}],
    }
    assert door.runtime.requests == []


def test_health_tells_how_workers_fare(open_door: OpenDoor) -> None:
    """But not what they logged, nor whose requests they had: no key is asked for."""
    door = open_door()
    ended = WorkerExit(
        pid=1, code=-6, signal="SIGABRT", seconds=2.0, log=("secret",), requests=("r-1",)
    )
    worker = WorkerStatus(model="m", state="ready", restarts=1, resumed=3, exits=(ended,))
    door.runtime.rows = [msgspec.structs.replace(row, worker=worker) for row in door.runtime.rows]
    assert httpx.get(door.url + "/health").json()["models"][0]["worker"] == {
        "state": "ready",
        "restarts": 1,
        "resumed": 3,
        "poisonous": 0,
        "last_exit": "was ended by SIGABRT",
    }


def test_body_too_large(open_door: OpenDoor) -> None:
    door = open_door(max_body_bytes=200)
    assert door.chat().status_code == 200
    response = door.chat(user="x" * 200)
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"

    def endless() -> Any:
        for _ in range(50):
            yield b" " * 100

    chunked = httpx.post(door.url + "/v1/completions", content=endless())
    assert chunked.status_code == 413


def test_api_keys(open_door: OpenDoor) -> None:
    door = open_door(key="two", api_keys=("one", "two"))
    door.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    tenant = door.runtime.requests[0].tenant
    assert tenant is not None
    assert "two" not in tenant
    with pytest.raises(openai.AuthenticationError) as caught:
        door.client.with_options(api_key="three").models.list()
    assert caught.value.code == "invalid_api_key"
    assert door.chat().status_code == 401
    assert door.chat().headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/v1/models/m"):
        assert httpx.get(door.url + path).status_code == 401
    for path in ("/v1/completions", "/v1/embeddings"):
        assert door.post(path, {}).status_code == 401
    assert (
        door.post("/v1/completions", {}, headers={"authorization": "Basic two"}).status_code == 401
    )
    assert httpx.get(door.url + "/health").status_code == 200


def test_cors(open_door: OpenDoor, door: Door) -> None:
    allowed = {"origin": "https://a.example"}
    asking = {**allowed, "access-control-request-headers": "authorization, x-stainless-os"}
    assert (
        "access-control-allow-origin"
        not in httpx.get(door.url + "/health", headers=allowed).headers
    )
    assert httpx.options(door.url + "/v1/models", headers=asking).status_code == 405
    strict = open_door(allow_origins=("https://a.example",), api_keys=("k",))
    preflight = httpx.options(strict.url + "/v1/models", headers=asking)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert (
        preflight.headers["access-control-allow-headers"]
        == asking["access-control-request-headers"]
    )
    refused = httpx.get(strict.url + "/v1/models", headers=allowed)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    other = httpx.get(strict.url + "/health", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_the_readme_lists_every_code_and_field() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    kinds = (ChatBody, CompletionBody, EmbeddingBody)
    fields = {name for kind in kinds for name in kind.__struct_fields__}
    settings = set(OpenAISettings.__struct_fields__)
    assert [word for word in sorted({*STATUS, *fields}) if f"`{word}" not in readme] == []
    assert [name for name in settings if f"\n{name} = " not in readme] == []
    for code, status in STATUS.items():
        row = next(line for line in readme.splitlines() if line.startswith(f"| {status} |"))
        assert f"`{code}`" in row
