"""Hypothesis strategies for messages: everything they give is valid, and survives JSON."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from themis_core.messages import (
    AdapterWeight,
    ChatMessage,
    Constraint,
    Delta,
    Done,
    Finished,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    NamedTool,
    Role,
    SamplingParams,
    Started,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from themis_core.messages.request import MAX_LOGPROBS

Strategy = st.SearchStrategy

_counts = st.integers(0, 2**31 - 1)
_finite = st.floats(allow_nan=False, allow_infinity=False)


def texts(*, min_size: int = 0) -> Strategy[str]:
    """Unicode text without lone surrogates, which have no UTF-8."""
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=min_size, max_size=40)


def token_ids(*, vocab_size: int = 1000, min_size: int = 0) -> Strategy[tuple[int, ...]]:
    """Ids of a vocabulary."""
    ids = st.integers(0, vocab_size - 1)
    return st.lists(ids, min_size=min_size, max_size=20).map(tuple)


def json_values() -> Strategy[Any]:
    """What JSON can express."""
    leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _finite | texts()
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def sampling_params(draw: st.DrawFn, *, vocab_size: int = 1000) -> SamplingParams:
    """Every field within its range."""
    max_tokens = draw(st.none() | st.integers(1, 4096))
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens or 4096)),
        temperature=draw(st.just(0.0) | st.floats(1e-5, 10)),
        top_k=draw(st.integers(0, vocab_size)),
        top_p=draw(st.floats(0, 1, exclude_min=True)),
        min_p=draw(st.floats(0, 1)),
        typical_p=draw(st.floats(0, 1, exclude_min=True)),
        repetition_penalty=draw(st.floats(0.01, 10)),
        frequency_penalty=draw(st.floats(-2, 2)),
        presence_penalty=draw(st.floats(-2, 2)),
        logit_bias=draw(
            st.dictionaries(st.integers(0, vocab_size - 1), st.floats(-100, 100), max_size=5)
        ),
        seed=draw(st.none() | st.integers(0, 2**64 - 1)),
        n=draw(st.integers(1, 4)),
        logprobs=draw(st.none() | st.integers(0, MAX_LOGPROBS)),
        stop=draw(st.lists(texts(min_size=1), max_size=3).map(tuple)),
        stop_token_ids=draw(token_ids(vocab_size=vocab_size)),
        ignore_eos=draw(st.booleans()),
    )


def chat_messages() -> Strategy[ChatMessage]:
    """One turn of any role."""
    calls = st.builds(ToolCall, id=texts(), name=texts(), arguments=texts())
    return st.builds(
        ChatMessage,
        role=st.sampled_from(get_args(Role)),
        content=texts(),
        name=st.none() | texts(),
        reasoning=texts(),
        tool_calls=st.lists(calls, max_size=2).map(tuple),
        tool_call_id=st.none() | texts(),
    )


def constraints() -> Strategy[Constraint]:
    """Constraints of each kind; the source texts are in no particular language."""
    schemas = st.dictionaries(texts(), json_values(), max_size=3)
    return st.one_of(
        st.builds(Constraint, kind=st.just("json_schema"), value=schemas),
        st.builds(Constraint, kind=st.sampled_from(["regex", "lark", "gbnf"]), value=texts()),
        st.builds(Constraint, kind=st.just("choice"), value=st.lists(texts(), min_size=1)),
    )


@st.composite
def generate_requests(draw: st.DrawFn, *, vocab_size: int = 1000) -> GenerateRequest:
    """Requests with a text, token ids or messages, tools only with messages."""
    prompts = st.none() | texts(min_size=1) | token_ids(vocab_size=vocab_size, min_size=1)
    prompt = draw(prompts)
    turns = st.lists(chat_messages(), min_size=1, max_size=4).map(tuple)
    tool = st.builds(
        Tool,
        name=texts(min_size=1),
        description=texts(),
        parameters=st.dictionaries(texts(), json_values(), max_size=3),
    )
    chatting = prompt is None
    tools = draw(st.lists(tool, max_size=2).map(tuple)) if chatting else ()
    named = [NamedTool(name=tool.name) for tool in tools]
    choices: list[ToolChoice] = ["auto", "none"]
    if named:
        choices += ["required", *named]
    choice = draw(st.sampled_from(choices))
    free = choice in ("auto", "none")
    sampling = draw(sampling_params(vocab_size=vocab_size))
    resumable = sampling.n == 1
    return GenerateRequest(
        model=draw(texts()),
        prompt=prompt,
        messages=draw(turns) if chatting else (),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=draw(st.booleans()),
        template_options=(
            draw(st.dictionaries(texts(), json_values(), max_size=2)) if chatting else {}
        ),
        truncate_prompt_tokens=draw(st.none() | st.integers(1, 10_000)),
        sampling=sampling,
        resume_token_ids=draw(token_ids(vocab_size=vocab_size)) if resumable else (),
        constraint=draw(st.none() | constraints()) if free else None,
        adapters=draw(
            st.lists(
                st.builds(AdapterWeight, name=texts(min_size=1), weight=_finite), max_size=2
            ).map(tuple)
        ),
        priority=draw(st.integers(-10, 10)),
        timeout=draw(st.none() | st.floats(1e-3, 1e6)),
        tenant=draw(st.none() | texts()),
        cache_salt=draw(st.none() | texts()),
    )


def usages() -> Strategy[Usage]:
    """Token counts."""
    return st.builds(Usage, prompt_tokens=_counts, completion_tokens=_counts, cached_tokens=_counts)


def token_logprobs() -> Strategy[TokenLogprob]:
    """One token with some alternatives, best first."""
    value = st.floats(-1e3, 0)
    alternative = st.tuples(_counts, st.binary(max_size=8), value)
    return st.builds(
        TokenLogprob,
        token_id=_counts,
        token=st.binary(max_size=8),
        logprob=value,
        top=st.lists(alternative, max_size=5).map(
            lambda found: tuple(sorted(found, key=lambda entry: -entry[2]))
        ),
    )


def deltas(*, index: int = 0) -> Strategy[Delta]:
    """New output, with one log-probability for each token or none at all."""

    def build(
        entries: list[TokenLogprob],
        text: str,
        reasoning: str,
        calls: list[ToolCallDelta],
        *,
        logprobs: bool,
    ) -> Delta:
        return Delta(
            index=index,
            text=text,
            token_ids=tuple(entry.token_id for entry in entries),
            logprobs=tuple(entries) if logprobs else (),
            reasoning=reasoning,
            tool_calls=tuple(calls),
        )

    entries = st.lists(token_logprobs(), max_size=3)
    pieces = st.builds(
        ToolCallDelta, index=st.integers(0, 3), id=texts(), name=texts(), arguments=texts()
    )
    calls = st.lists(pieces, max_size=2)
    return st.builds(build, entries, texts(), texts(), calls, logprobs=st.booleans())


def finishes(*, index: int = 0) -> Strategy[Finished]:
    """Ends of a choice; only a stop can have a match."""
    stopped = st.builds(
        Finished,
        index=st.just(index),
        reason=st.just("stop"),
        matched=st.none() | texts(min_size=1) | _counts,
    )
    reasons = st.sampled_from(get_args(FinishReason))
    return stopped | st.builds(Finished, index=st.just(index), reason=reasons)


def events() -> Strategy[GenerateEvent]:
    """Any single event."""
    started = st.builds(Started, prompt_tokens=_counts, cached_tokens=_counts)
    return st.one_of(started, deltas(), finishes(), st.builds(Done, usage=usages()))


@st.composite
def event_streams(draw: st.DrawFn, *, max_choices: int = 3) -> list[GenerateEvent]:
    """All events of a request, in a valid order, with the usage that they add up to."""
    choices = draw(st.integers(1, max_choices))
    queues: list[list[GenerateEvent]] = [
        [*draw(st.lists(deltas(index=i), max_size=4)), draw(finishes(index=i))]
        for i in range(choices)
    ]
    prompt_tokens, cached = draw(_counts), draw(_counts)
    chosen = st.builds(AdapterWeight, name=texts(min_size=1), weight=_finite)
    stream: list[GenerateEvent] = [
        Started(
            prompt_tokens=prompt_tokens,
            cached_tokens=min(cached, prompt_tokens),
            adapters=draw(st.lists(chosen, max_size=2).map(tuple)),
        )
    ]
    while queues:
        queue = draw(st.sampled_from(queues))
        stream.append(queue.pop(0))
        if not queue:
            queues.remove(queue)
    sampled = sum(len(event.token_ids) for event in stream if isinstance(event, Delta))
    usage = Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=sampled,
        cached_tokens=min(cached, prompt_tokens),
    )
    return [*stream, Done(usage=usage)]


def cache_operations() -> Strategy[list[tuple[bytes, bytes | None]]]:
    """A history of a cache: (key, value) puts, (key, None) gets; keys are few and alike."""
    keys = st.sampled_from([b"", b"a", b"A", b"a\0", b"aa", b"a ", b"\xff"]) | st.binary(max_size=3)
    return st.lists(st.tuples(keys, st.none() | st.binary(max_size=20)), max_size=24)


def quota_operations() -> Strategy[list[tuple[str, int]]]:
    """A history of a quota: (what, number), what being reserve, settle or release."""
    kinds = st.sampled_from(["reserve", "reserve", "settle", "release"])
    return st.lists(st.tuples(kinds, st.integers(0, 7)), max_size=30)


@st.composite
def divided_texts(draw: st.DrawFn, fragments: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A text in pieces, as tokens might divide it; it is full of parts of `fragments`."""
    alphabet = sorted(set("".join(fragments)) | set(" aé\u0130\N{PARTY POPPER}"))
    wholes = st.sampled_from(fragments) if fragments else st.nothing()
    short = st.text(st.sampled_from(alphabet), max_size=4)
    text = "".join(draw(st.lists(wholes | short | texts(), max_size=6)))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=len(text))))
    ends = [*cuts, len(text)]
    return tuple(text[start:end] for start, end in zip([0, *cuts], ends, strict=True))
