"""All checks of the `ModelRunner` contract: each answer is compared with recomputation."""

from __future__ import annotations

import threading

from themis_engine import ModelRunner, RunnerInfo, Tokenizer
from themis_testkit.conformance.leftovers import assert_nothing_new, traces
from themis_testkit.conformance.runner_forward import ForwardChecks
from themis_testkit.conformance.runner_limits import LimitChecks
from themis_testkit.conformance.runner_memory import RunnerFactory, on_runner, run
from themis_testkit.conformance.runner_sequences import SequenceChecks
from themis_testkit.conformance.runner_states import StateChecks

__all__ = ["RunnerConformance", "RunnerFactory"]


class RunnerConformance(ForwardChecks, SequenceChecks, LimitChecks, StateChecks):
    """Subclass it, and give it the fixture `runner_factory`.

    The facts in `RunnerInfo` choose the checks. The contract leaves open what a breach of it does,
    so nothing here breaks it; `themis_testkit.fakes.toy_runner` is a runner that does complain.
    """

    @on_runner
    def test_it_is_a_runner(self, runner: ModelRunner) -> None:
        """Every method is there, and `info` makes sense."""
        assert isinstance(runner, ModelRunner)
        info = runner.info
        assert isinstance(info, RunnerInfo)
        for name in ("vocab_size", "context_length", "max_sequences", "kv_capacity", "max_batch"):
            assert getattr(info, name) >= 1, name

    @on_runner
    def test_info_is_constant(self, runner: ModelRunner) -> None:
        """`info`: "constant"."""
        before = runner.info
        run(runner, 0, 0, self.tokens(runner, 3))
        runner.free(0)
        assert runner.info == before

    @on_runner
    def test_the_tokenizer(self, runner: ModelRunner) -> None:
        """Ids are of the vocabulary; the bytes of a text's tokens hold the text."""
        tokenizer = runner.tokenizer
        assert isinstance(tokenizer, Tokenizer)
        ids = tokenizer.encode(self.text, parse_special=False)
        assert all(0 <= token < runner.info.vocab_size for token in ids)
        text = b"".join(tokenizer.token_bytes(token) for token in ids)
        assert self.text.encode() in text
        assert all(0 <= end < runner.info.vocab_size for end in tokenizer.end_tokens)
        for special, token in tokenizer.special_tokens.items():
            assert tokenizer.token_bytes(token) == b"", special

    @on_runner
    def test_the_tokenizer_serves_several_threads(self, runner: ModelRunner) -> None:
        """`Tokenizer`: "Safe to call from several threads at once"."""
        text = self.text * 40
        expected = runner.tokenizer.encode(text, parse_special=False)
        seen: list[list[int]] = []

        def work() -> None:
            for _ in range(20):
                seen.append(runner.tokenizer.encode(text, parse_special=False))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [expected] * 80

    def test_closing_leaves_nothing(self, runner_factory: RunnerFactory) -> None:
        """`close`: "Release the model."."""
        runner_factory().close()  # A library may start what it keeps for the life of the process.
        before = traces()
        runner = runner_factory()
        if runner.info.causal:
            run(runner, 0, 0, self.tokens(runner, 2))
        runner.close()
        assert_nothing_new(before)
