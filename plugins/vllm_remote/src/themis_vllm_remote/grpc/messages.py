"""Orders as vLLM's Protobuf messages, and its answers as `Piece`s."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterator
from typing import Any

from themis_core.errors import UnsupportedField
from themis_vllm_remote.checks import seed_of
from themis_vllm_remote.door import Order, Piece
from themis_vllm_remote.grpc import vllm_pb2 as pb

_SEEDS = 2**30  # Of int32: choices add their index.


def generate_request(order: Order) -> Any:
    """Raises `UnsupportedField` for what the service has no field for."""
    request, params = order.request, order.request.sampling
    if order.adapter is not None:
        raise refused("adapters", "LoRA adapters")
    if order.salt is not None:
        raise refused("cache_salt", "a salt for the prefix cache")
    sampling = pb.SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty,
        max_tokens=order.limit,
        min_tokens=params.min_tokens,
        stop_token_ids=params.stop_token_ids,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
        ignore_eos=params.ignore_eos,
        n=params.n,
        logit_bias=params.logit_bias,
    )
    if params.logprobs is not None:
        sampling.logprobs = params.logprobs
    if params.seed is not None:
        sampling.seed = (seed_of(params.seed) or 0) % _SEEDS
    if order.structured is not None:
        _constrain(sampling, dict(order.structured))
    return pb.GenerateRequest(
        request_id=f"{request.request_id}-{secrets.token_hex(4)}",
        tokenized=pb.Tokenized(input_ids=order.ids),
        sampling_params=sampling,
        stream=True,
    )


def refused(field: str, what: str) -> UnsupportedField:
    """What only the other doors carry."""
    return UnsupportedField(
        f"vLLM's gRPC service does not know {what}.",
        field=field,
        remedy="Use the server's HTTP port, or a Themis worker with vllm_engine.",
        plugin="vllm",
    )


def _constrain(sampling: Any, structured: dict[str, Any]) -> None:
    for name, value in structured.items():
        match name:
            case "json":
                sampling.json_schema = value if isinstance(value, str) else json.dumps(value)
            case "regex":
                sampling.regex = value
            case "grammar":
                sampling.grammar = value
            case "choice":
                sampling.choice.choices.extend(value)


class Reader:
    """Answers to one request. The last one repeats the last piece, which is not taken twice.

    A piece that ends with one of the request's stop tokens waits for the next answer, which says
    whether it was the last: the text of a stop token is no part of the answer.
    """

    def __init__(self, stop: Collection[int] = ()) -> None:
        self._stop = frozenset(stop)
        self._seen: dict[int, int] = {}
        self._held: dict[int, Piece] = {}

    def pieces(self, response: Any) -> Iterator[Piece]:
        """What is new in an answer."""
        kind = response.WhichOneof("response")
        if kind == "chunk":
            chunk = response.chunk
            count = len(chunk.token_ids)
            self._seen[chunk.index] = self._seen.get(chunk.index, 0) + count
            piece = Piece(
                index=chunk.index,
                token_ids=tuple(chunk.token_ids),
                logprobs=_logprobs(chunk.output_logprobs, count),
                prompt_tokens=chunk.prompt_tokens,
                cached_tokens=chunk.cached_tokens,
            )
            held = self._held.pop(chunk.index, None)
            if held is not None:
                yield held
            if piece.token_ids and piece.token_ids[-1] in self._stop:
                self._held[chunk.index] = piece
            else:
                yield piece
        elif kind == "complete":
            yield self._last(response.complete)

    def _last(self, end: Any) -> Piece:
        held = self._held.pop(end.index, Piece())
        new = max(0, end.completion_tokens - self._seen.get(end.index, 0))
        skipped = max(0, len(end.output_ids) - new)
        logprobs = _logprobs(end.output_logprobs, len(end.output_ids))[skipped:]
        return Piece(
            index=end.index,
            token_ids=(*held.token_ids, *tuple(end.output_ids)[skipped:]),
            logprobs=[*held.logprobs, *logprobs],
            reason=end.finish_reason,
            stop_id=end.matched_token_id if end.HasField("matched_token_id") else None,
            prompt_tokens=end.prompt_tokens,
            cached_tokens=end.cached_tokens,
        )


def _logprobs(given: Any, count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    values = list(given.token_logprobs)
    if len(values) != count:  # None were asked for.
        return []
    tops = [list(zip(top.token_ids, top.values, strict=True)) for top in given.top_logprobs]
    tops += [[]] * (count - len(tops))
    return list(zip(values, tops, strict=True))
