"""Calls that break the contract are errors, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from themis_core.errors import InternalError, InvalidRequest
from themis_core.messages import AdapterWeight
from themis_engine import Batch

from .onnx_models import LAYOUTS, batch, directory, forward, running, settings


@pytest.fixture(scope="module", params=LAYOUTS)
def runner(request: pytest.FixtureRequest) -> Iterator[Any]:
    with running(directory(request.param), context=64, batch_size=100) as made:
        yield made


@pytest.fixture(autouse=True)
def _empty(runner: Any) -> None:
    for sequence in range(8):
        runner.free(sequence)


def rows(count: int, wanted: list[int]) -> Batch:
    made = batch((0, 0, [5] * count))
    return Batch(made.tokens, made.positions, made.sequences, np.array(wanted, np.int32))


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (lambda r: r.forward(rows(0, [])), "a batch of 0 positions"),
        (lambda r: r.forward(batch((0, 0, [5] * 101))), "a batch of 101 positions"),
        (lambda r: r.forward(batch((8, 0, [5]))), "does not exist"),
        (lambda r: r.forward(batch((-1, 0, [5]))), "does not exist"),
        (lambda r: r.forward(batch((0, 0, [-1]))), "token that does not exist"),
        (lambda r: r.forward(batch((0, 0, [1920]))), "token that does not exist"),
        (lambda r: r.forward(batch((0, 50, [5]))), "do not continue"),
        (lambda r: r.forward(batch((0, 0, [5]), (0, 0, [5]))), "do not continue"),
        (lambda r: r.forward(batch((0, 0, [5] * 65))), "longer than the context"),
        (lambda r: r.forward(rows(2, [1, 1])), "logit_rows"),
        (lambda r: r.forward(rows(2, [1, 0])), "logit_rows"),
        (lambda r: r.forward(rows(2, [2])), "logit_rows"),
        (lambda r: r.forward(rows(2, [-1])), "logit_rows"),
        (lambda r: r.free(8), "no sequence 8"),
        (lambda r: r.free(-1), "no sequence -1"),
        (lambda r: r.truncate(-1, 0), "no sequence -1"),
        (lambda r: r.truncate(0, -1), "cannot truncate"),
        (lambda r: r.copy(0, 9, 0), "no sequence 9"),
        (lambda r: r.copy(0, 1, 1), "cannot copy"),
        (lambda r: r.copy(0, 0, 0), "cannot copy"),
        (
            lambda r: r.forward(batch((0, 0, [5]), adapters=(AdapterWeight(name="nobody"),))),
            "adapters",
        ),
    ],
)
def test_wrong_calls_are_errors_and_change_nothing(
    runner: Any, call: Callable[[Any], object], cause: str
) -> None:
    want = forward(runner, (1, 0, [7, 8, 9]))
    runner.free(1)
    with pytest.raises(InternalError, match=cause):
        call(runner)
    np.testing.assert_array_equal(forward(runner, (1, 0, [7, 8, 9])), want)


def test_copying_nothing_and_cutting_beyond_the_end(runner: Any) -> None:
    forward(runner, (0, 0, [5] * 9))
    runner.copy(0, 1, 0)
    runner.copy(0, 2, 4)
    np.testing.assert_allclose(
        forward(runner, (2, 4, [5, 5])), forward(runner, (1, 0, [5] * 6)), atol=2e-3
    )
    assert runner.truncate(2, 100)
    assert runner.truncate(2, 0)
    forward(runner, (2, 0, [5, 6]))


def test_the_whole_context_can_be_used(runner: Any) -> None:
    forward(runner, (0, 0, [5] * 63), (1, 0, [6]))
    forward(runner, (0, 63, [5]), (1, 1, [6]))
    with pytest.raises(InternalError, match="longer than the context"):
        forward(runner, (0, 64, [5]))


def test_lone_surrogates_are_refused(runner: Any) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        runner.tokenizer.encode("a\ud800", parse_special=False)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"parallel": 64, "batch_size": 32}, "batch_size"),
        ({"speculation": "draft"}, "needs draft_path"),
        ({"draft_path": "x"}, "draft_path has no effect"),
        ({"prefix_cache": False, "prefix_sequences": 3}, "prefix_sequences has no effect"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        settings(directory("shared"), **({"prefix_sequences": None} | changes))
