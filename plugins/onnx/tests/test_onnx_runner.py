"""`OnnxRunner` in both layouts: batched equals alone, and changes of the KV cache are exact."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx

from themis_core.errors import ModelLoadFailed
from themis_engine import Logits, ModelRunner, StepInterrupted
from themis_testkit.reference.runner import ReferenceRunner
from themis_tiny_model import path

from .onnx_models import LAYOUTS, batch, directory, fill, forward, graph, greedy, ids, running

# What must give the reference's logits: (layout, form of the graph).
PARIS = b"The capital of France is Paris."
FORMS = [(layout, form) for layout in LAYOUTS for form in ("plain", "whole", "pruned", "keeps")]


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def runner(request: pytest.FixtureRequest) -> Iterator[Any]:
    # Small pieces and steps, so that every boundary is crossed.
    with running(directory(*request.param), micro_batch_size=5, kv_step=8) as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "runner" in request.fixturenames:
        for sequence in range(8):
            request.getfixturevalue("runner").free(sequence)


@pytest.fixture(scope="module")
def reference() -> ReferenceRunner:
    return ReferenceRunner(path("hf"), parallel=8)


def close(a: Logits, b: Logits) -> None:
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_a_batch_is_interrupted_between_any_two_kernels(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself ends the run; the sequences are as before, and go on."""
    prompt = ids(runner)
    whole = forward(runner, (0, 0, prompt))
    runner.truncate(0, 3)
    original = type(runner._cache).extend
    pieces: list[int] = []

    def extend(cache: Any, *given: Any) -> Any:
        pieces.append(1)
        if len(pieces) == 2:
            threading.Thread(target=runner.interrupt).start()
            while not runner._steps._options.terminate:
                pass
        return original(cache, *given)

    monkeypatch.setattr(type(runner._cache), "extend", extend)
    with pytest.raises(StepInterrupted):
        forward(runner, (0, 3, prompt[3:]))
    assert runner._cache.held[0] == 3
    runner.interrupt()  # Too late: the next batch is not concerned.
    close(forward(runner, (0, 3, prompt[3:])), whole)


def test_batches_are_computed_together(runner: Any) -> None:
    assert runner._batches


@pytest.mark.parametrize(
    ("form", "spares", "last_only"),
    [
        ("plain", True, False),
        ("whole", False, False),
        ("keeps", False, False),
        ("pruned", False, True),
    ],
)
def test_logits_that_nobody_wants_are_spared(form: str, spares: bool, last_only: bool) -> None:
    for layout in LAYOUTS:
        with running(directory(layout, form)) as runner:
            # A pruned graph bears the change, but it changes nothing.
            assert runner._spares == (spares or last_only)
            assert runner._steps.last_only == last_only


def test_a_graph_that_does_not_bear_the_change_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its hidden states are flat, so that there is no dimension of positions to cut."""
    folder = fill(tmp_path / "flat")
    model = graph("shared")
    head = next(node for node in model.graph.node if node.name == "/lm_head/MatMul")
    nodes = list(model.graph.node)
    for name, shape in (("flat", [-1, 256]), ("deep", [1, -1, 1920])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape), name))
    flat = onnx.helper.make_node("Reshape", [head.input[0], "flat"], ["hidden_flat"])
    deep = onnx.helper.make_node("Reshape", ["logits_flat", "deep"], ["logits_deep"])
    last = onnx.helper.make_node("Identity", ["logits_deep"], ["logits"])
    head.input[0], head.output[0] = "hidden_flat", "logits_flat"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:-1], flat, head, deep, last])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with running(folder) as runner:
        assert not runner._spares
        # And it is made for one sequence at a time, which the trial finds out.
        assert not runner._batches
        with running(directory("shared")) as good:
            assert greedy(runner, ids(runner), 6) == greedy(good, ids(good), 6)


def test_greedy_answers_equal_the_references(runner: Any, reference: ReferenceRunner) -> None:
    assert greedy(runner, ids(runner), 12) == greedy(reference, ids(runner), 12)


def test_a_batch_equals_each_alone(runner: Any, reference: ReferenceRunner) -> None:
    prompts = [ids(runner, f"{word} {i}") for i, word in enumerate(("One", "Zwei drei", "x", ""))]
    together = forward(runner, *((i, 0, p) for i, p in enumerate(prompts)), rows="all")
    alone = [forward(reference, (0, 0, prompts[0]), rows="all")]
    for prompt in prompts[1:]:
        reference.free(0)
        alone.append(forward(reference, (0, 0, prompt), rows="all"))
    reference.free(0)
    close(together, np.concatenate(alone))


def test_positions_of_sequences_may_be_mixed(runner: Any) -> None:
    a, b = ids(runner)[:6], ids(runner)[6:9]
    want = forward(runner, (0, 0, a), (1, 0, b), rows="all")
    runner.free(0)
    runner.free(1)
    given = batch((0, 0, a), (1, 0, b), rows="all")
    order = np.array([0, 6, 1, 2, 7, 3, 4, 8, 5])
    mixed = type(given)(
        given.tokens[order], given.positions[order], given.sequences[order], given.logit_rows
    )
    close(runner.forward(mixed), want[order])


def test_no_logits_are_no_rows(runner: Any) -> None:
    assert forward(runner, (0, 0, [5, 6, 7]), rows="none").shape == (0, runner.info.vocab_size)
    assert forward(runner, (0, 3, [5]), rows="none").shape == (0, runner.info.vocab_size)


def test_what_follows_is_independent_of_those_who_left(runner: Any) -> None:
    prompt = ids(runner)
    want = greedy(runner, prompt, 6)
    for sequence in range(6):
        forward(runner, (sequence, 0, [7 + sequence] * (3 + 2 * sequence)))
    for sequence in (0, 2, 5):
        runner.free(sequence)
    assert greedy(runner, prompt, 6) == want


@settings(max_examples=40)
@given(st.data())
def test_any_course_of_events_equals_the_reference(data: st.DataObject) -> None:
    """Whatever joins, leaves, is copied and cut: the logits are those of the numpy reference."""
    layout, form = data.draw(st.sampled_from(FORMS), label="graph")
    runner, reference = _pair(layout, form)
    held = [0] * 8
    try:
        for _ in range(data.draw(st.integers(1, 8), label="steps")):
            _change(data, held, runner, reference)
            chosen = data.draw(st.sets(st.integers(0, 7), min_size=1), label="sequences")
            parts = []
            for sequence in sorted(chosen):
                count = data.draw(st.sampled_from([1, 1, 1, 2, 7, 12]), label="count")
                tokens = data.draw(st.lists(st.integers(0, 1900), min_size=count, max_size=count))
                parts.append((sequence, held[sequence], tokens))
                held[sequence] += count
            rows = data.draw(st.sampled_from(["last", "all", "none"]), label="rows")
            given = batch(*parts, rows=rows)
            close(runner.forward(given), reference.forward(given))
    finally:
        for sequence in range(8):
            runner.free(sequence)
            reference.free(sequence)


def _change(data: st.DataObject, held: list[int], *runners: ModelRunner) -> None:
    """Free, cut or copy something, in all runners alike."""
    what = data.draw(st.sampled_from(["nothing", "free", "truncate", "copy"]), label="change")
    source = data.draw(st.integers(0, 7), label="source")
    if what == "free":
        for one in runners:
            one.free(source)
        held[source] = 0
    if what == "truncate":
        length = data.draw(st.integers(0, held[source]), label="length")
        for one in runners:
            assert one.truncate(source, length)
        held[source] = length
    empty = [i for i, n in enumerate(held) if not n and i != source]
    if what == "copy" and empty:
        length = data.draw(st.integers(0, held[source]), label="length")
        for one in runners:
            one.copy(source, empty[0], length)
        held[empty[0]] = length


_pairs: dict[tuple[str, str], tuple[Any, ReferenceRunner]] = {}


def _pair(layout: Any, form: str) -> tuple[Any, ReferenceRunner]:
    if (layout, form) not in _pairs:
        from themis_onnx.loading import load

        from .onnx_models import settings as made

        small = made(directory(layout, form), micro_batch_size=5, kv_step=8)
        _pairs[layout, form] = (load(small), ReferenceRunner(path("hf"), parallel=8))
    return _pairs[layout, form]


@pytest.fixture(scope="module", autouse=True)
def _close_pairs() -> Iterator[None]:
    yield
    while _pairs:
        _pairs.popitem()[1][0].close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_answers_alike(layout: Any, reference: ReferenceRunner) -> None:
    with running(directory(layout, "half")) as runner:
        assert runner._steps.signature.logits_kind == "tensor(float16)"
        assert runner._batches
        assert greedy(runner, ids(runner), 8) == greedy(reference, ids(runner), 8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("form", "together"), [("int4", True), ("int8", False)])
def test_quantised_graphs_answer(layout: Any, form: str, together: bool) -> None:
    """Of int8 graphs, the rows of a batch share a scale: so sequences are computed one by one."""
    with running(directory(layout, form), kv_step=8) as runner:
        assert runner._batches == together
        found = greedy(runner, ids(runner), 8)
        assert b"".join(map(runner.tokenizer.token_bytes, found)) == PARIS
        assert runner.info.parameters > 1_500_000
        starts = [ids(runner, text) for text in ("One", "Zwei drei", "x y z")]
        forward(runner, *((i, 0, start) for i, start in enumerate(starts)))
        together_then = forward(runner, *((i, len(s), [9]) for i, s in enumerate(starts)))
        for i, start in enumerate(starts):
            runner.free(i)
            forward(runner, (i, 0, start))
            alone = forward(runner, (i, len(start), [9]))
            close(together_then[i], alone[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_batches_the_answers_are_the_same(
    layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(directory(layout)) as runner:
        parts = [(i, 0, [5 + i] * (i + 2)) for i in range(4)]
        forward(runner, *parts)
        want = forward(runner, *((i, i + 2, [9]) for i in range(4)))
        for i in range(4):
            runner.free(i)
        monkeypatch.setattr(runner, "_batches", False)
        forward(runner, *parts)
        close(forward(runner, *((i, i + 2, [9]) for i in range(4))), want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_failed_step_changes_nothing(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two sequences fails: the first is as before, and both can go on."""
    with running(directory(layout)) as runner:
        prompt = ids(runner)
        want = forward(runner, (0, 0, prompt), (1, 0, prompt[:4]), rows="all")
        runner.free(0)
        runner.free(1)
        forward(runner, (0, 0, prompt[:3]))
        real, calls = runner._cache.extend, []

        def fail_second(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 2:
                raise MemoryError
            return real(*arguments)

        monkeypatch.setattr(runner._cache, "extend", fail_second)
        with pytest.raises(MemoryError):
            forward(runner, (0, 3, prompt[3:]), (1, 0, prompt[:4]))
        monkeypatch.undo()
        again = forward(runner, (0, 3, prompt[3:]), (1, 0, prompt[:4]), rows="all")
        close(again, want[3:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_error_inside_onnx_runtime_changes_nothing(
    layout: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cache tensor is bound with a wrong shape, as a lying file would have it."""
    from themis_core.errors import BackendFailed

    with running(directory(layout)) as runner:
        prompt = ids(runner)
        want = forward(runner, (0, 0, prompt))
        runner.free(0)
        forward(runner, (0, 0, prompt[:3]))
        with pytest.raises(BackendFailed, match="could not compute"):
            runner._steps.run(
                "extend",
                np.array([[5]]),
                np.ones((1, 4), np.int64),
                np.array([[3]]),
                1,
                "wrong",
                lambda io: io.bind_cpu_input("past_key_values.0.key", np.zeros((1, 1), np.float32)),
            )
        close(forward(runner, (0, 3, prompt[3:])), want)
        assert capfd.readouterr() == ("", "")  # The exception says it all.


def test_memory_that_cannot_be_had_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(directory("shared"), kv_step=8) as runner:
        prompt = ids(runner)
        want = forward(runner, (0, 0, prompt))
        runner.free(0)
        forward(runner, (0, 0, prompt[:3]))
        real, left = np.zeros, [3]

        def zeros(*given: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise MemoryError
            return real(*given)

        with monkeypatch.context() as patched:
            patched.setattr("themis_onnx.shared_cache.np.zeros", zeros)
            with pytest.raises(MemoryError):
                runner._cache._reallocate(100)
        close(forward(runner, (0, 3, prompt[3:])), want)


def test_buffers_shrink_when_all_is_free() -> None:
    with running(directory("shared"), kv_step=8) as runner:
        forward(runner, (0, 0, [5] * 100))
        assert runner._cache._room >= 100
        runner.free(0)
        assert runner._cache._room == 8


def test_those_that_decode_together_do_not_move() -> None:
    """The KV cache is bound once, and then only when another set decodes."""
    with running(directory("shared")) as runner:
        for sequence in (0, 3, 5):
            forward(runner, (sequence, 0, [5] * 4))
        bound: list[int] = []
        real = runner._cache._bind

        def count(*arguments: Any) -> None:
            bound.append(1)
            real(*arguments)

        runner._cache._bind = count
        for step in range(5):
            forward(runner, *((s, 4 + step, [6]) for s in (0, 3, 5)))
        assert len(bound) == 1


def test_the_description_is_the_models(runner: Any) -> None:
    info = runner.info
    assert info.vocab_size == 1920
    assert 2_000_000 < info.parameters < 2_200_000
    assert info.max_sequences == 8
    assert info.context_length == 2048
    assert info.kv_capacity == 4 * 2048
    assert info.causal
    assert "llama" in info.description


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"context": 10**6}, "trained for 2048"),
        ({"kv_tokens": 10**12}, "GiB of memory"),
        ({"provider": "cuda"}, "does not have"),
        ({"provider": "NoSuchProvider"}, "does not have"),
        ({"variant": "q4"}, "variant is 'q4'.*has: fp32"),
    ],
)
def test_settings_that_cannot_work_say_why(changes: dict[str, object], expected: str) -> None:
    with (
        pytest.raises(ModelLoadFailed, match=expected),
        running(directory("shared"), **changes),
    ):
        pass


def test_closing_twice_is_fine() -> None:
    with running(directory("shared")) as runner:
        runner.close()
