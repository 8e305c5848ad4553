"""All checks of the `Validator` contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import ClassVar

import msgspec
import pytest
from hypothesis import given

from themis_core.contracts import Validator
from themis_core.errors import RequestRejected
from themis_core.messages import ChatMessage, GenerateRequest, SamplingParams
from themis_testkit.conformance.kit import (
    KitBase,
    assert_closes_clean,
    cancelled_after,
    declared,
    on,
)
from themis_testkit.conformance.validator_output import accepts, interleaved, output, plain_request
from themis_testkit.strategies import divided_texts

ValidatorFactory = Callable[[], Validator]


class ValidatorConformance(KitBase):
    """Subclass it, give it the fixture `validator_factory`, and say what it lets through."""

    accepted: ClassVar[tuple[str, ...]] = ("Hello, world.",)
    """Prompts and answers that pass."""

    rejected_prompts: ClassVar[tuple[str, ...]] = ()
    """Prompts that are refused."""

    rejected_answers: ClassVar[tuple[str, ...]] = ()
    """Answers that are refused; the checks try their parts in all combinations."""

    never_sent: ClassVar[tuple[str, ...]] = ()
    """What must not get out, not even of an answer that is refused in the end."""

    hold_back: ClassVar[int | None] = None
    """The most characters of an answer that a check holds back; None if there is no bound."""

    changes_text: ClassVar[bool] = False
    """True if answers are changed, and not only let through or refused."""

    @pytest.fixture
    def validator_factory(self) -> ValidatorFactory:
        """A function that gives a new validator at each call."""
        raise NotImplementedError("a conformance suite needs the fixture validator_factory")

    # --- prompts ---------------------------------------------------------------------------------

    @on("validator_factory")
    async def test_accepted_prompts_pass(self, validator: Validator) -> None:
        """`check_input`: "Return the request, changed or not", and a valid one."""
        for request in self._requests(self.accepted):
            checked = await validator.check_input(request)
            assert isinstance(checked, GenerateRequest)
            assert checked.request_id == request.request_id
            data = msgspec.json.encode(checked)
            assert msgspec.json.decode(data, type=GenerateRequest) == checked

    @on("validator_factory")
    async def test_rejected_prompts_are_refused(self, validator: Validator) -> None:
        """`check_input`: "Raises `RequestRejected` with the reason", as prompt or message."""
        if not self.rejected_prompts:
            pytest.skip("rejected_prompts is not declared")
        for request in self._requests(self.rejected_prompts):
            with pytest.raises(RequestRejected) as caught:
                await validator.check_input(request)
            assert str(caught.value)

    @on("validator_factory")
    async def test_prompts_of_token_ids_are_no_crash(self, validator: Validator) -> None:
        """A prompt can be token ids: judged or not, nothing but `RequestRejected` is raised."""
        try:
            checked = await validator.check_input(GenerateRequest(prompt=(1, 2, 3)))
        except RequestRejected:
            return
        assert isinstance(checked, GenerateRequest)

    @on("validator_factory")
    async def test_the_given_request_is_not_changed(self, validator: Validator) -> None:
        """Requests are frozen, also where a dictionary is inside: others hold the same object."""
        for request in self._requests((*self.accepted, *self.rejected_prompts)):
            before = msgspec.json.encode(request)
            with suppress(RequestRejected):
                await validator.check_input(request)
            output(validator, request, [*self.accepted])
            assert msgspec.json.encode(request) == before

    @on("validator_factory")
    async def test_requests_do_not_mix(self, validator: Validator) -> None:
        """Many prompts at once: each gets its own request and its own verdict."""

        async def judge(request: GenerateRequest) -> str | None:
            try:
                return (await validator.check_input(request)).request_id
            except RequestRejected:
                return None

        good = self._requests(self.accepted) * 4
        bad = self._requests(self.rejected_prompts) * 2
        results = await asyncio.gather(*(judge(r) for r in [*good, *bad]))
        assert results[: len(good)] == [request.request_id for request in good]
        assert results[len(good) :] == [None] * len(bad)

    @on("validator_factory")
    async def test_cancelling_leaves_no_trace(self, validator: Validator) -> None:
        """ "When the time is up this is cancelled": the next prompt is judged as ever."""
        request = self._requests(self.accepted)[0]
        for turns in range(self.cancel_steps):
            await cancelled_after(turns, validator.check_input(request))
            assert (await validator.check_input(request)).request_id == request.request_id

    # --- answers ---------------------------------------------------------------------------------

    @on("validator_factory")
    async def test_accepted_answers_pass(self, validator: Validator) -> None:
        """Unchanged, if it does not declare to change them; the empty answer is checked too."""
        self._need_output(validator)
        for text in self.accepted:
            accepted, sent = output(validator, plain_request(), text)
            assert accepted
            assert self.changes_text or sent == text

    @on("validator_factory")
    async def test_rejected_answers_are_refused(self, validator: Validator) -> None:
        """Whole, character by character, and in the middle of a text."""
        self._need_output(validator)
        if not self.rejected_answers:
            pytest.skip("rejected_answers is not declared")
        for text in self.rejected_answers:
            for pieces in ([text], text, [f"{self.accepted[0]} ", *text, " more"]):
                assert not output(validator, plain_request(), pieces)[0], pieces

    @on("validator_factory")
    async def test_what_is_refused_is_not_sent(self, validator: Validator) -> None:
        """What must never get out has not got out when the refusal comes."""
        self._need_output(validator)
        if not self.never_sent:
            pytest.skip("never_sent is not declared")
        for text in self.rejected_answers:
            for pieces in ([text], text, [f"{self.accepted[0]} ", *text]):
                _, sent = output(validator, plain_request(), pieces)
                assert not [secret for secret in self.never_sent if secret in sent], pieces

    def test_the_stream_is_judged_as_the_whole(self, validator_factory: ValidatorFactory) -> None:
        """`OutputCheck`: "The verdict on the stream must equal the verdict on the whole text."

        So must what is sent.
        """

        def judge(pieces: tuple[str, ...]) -> None:
            validator = self.make(validator_factory)
            try:
                if validator.check_output(plain_request()) is not None:
                    self._compare(validator, pieces)
            finally:
                asyncio.run(validator.aclose())

        # What is almost refused is held back to the end, which chance alone seldom finds.
        for text in self.rejected_answers:
            for end in range(1, len(text)):
                judge(tuple(text[:end]))
        divided = divided_texts((*self.rejected_answers, *self.accepted))
        self.settings(5 * self.examples)(given(divided)(judge))()

    def _compare(self, validator: Validator, pieces: tuple[str, ...]) -> None:
        text = "".join(pieces)
        whole, sent_whole = output(validator, plain_request(), [text])
        accepted, sent = output(validator, plain_request(), pieces)
        assert accepted == whole, (pieces, "the verdict depends on how the text is divided")
        if accepted:
            assert sent == sent_whole, (pieces, "what is sent depends on how it is divided")
        if not self.changes_text:
            assert text.startswith(sent), (pieces, "what was sent is no part of the text")
            assert not accepted or sent == text, (pieces, "an accepted text was not sent whole")

    @on("validator_factory")
    async def test_no_more_is_held_back_than_declared(self, validator: Validator) -> None:
        """ "A check may hold text back … within the bound that its plugin declares."."""
        self._need_output(validator)
        bound = declared(self.hold_back, "hold_back")
        if self.changes_text:
            pytest.skip("changes_text is declared: what is held back cannot be counted")
        texts = [*self.accepted, "".join(self.accepted) * 20]
        texts += [bad[:-1] for bad in self.rejected_answers]
        texts += [f"{bad[:-1]}\N{PARTY POPPER} " * 8 for bad in self.rejected_answers]
        for text in texts:
            check = validator.check_output(plain_request())
            assert check is not None
            sent = 0
            for taken, character in enumerate(text, 1):
                try:
                    sent += len(check.push(character))
                except RequestRejected:
                    break
                assert taken - sent <= bound, f"{taken - sent} characters of {text!r} held back"

    @on("validator_factory")
    async def test_checks_are_independent(self, validator: Validator) -> None:
        """ "each of them is a text of its own and gets a check of its own"."""
        self._need_output(validator)
        request = plain_request()
        texts = [*self.accepted, *self.rejected_answers, *self.accepted]
        alone = [output(validator, request, text) for text in texts]
        together = interleaved(validator, request, texts)
        assert together == alone
        for bad in self.rejected_answers:  # Two halves in two checks make no whole.
            first, second = validator.check_output(request), validator.check_output(request)
            assert first is not None
            assert second is not None
            assert first is not second
            middle = len(bad) // 2
            if accepts(validator, bad[:middle]) and accepts(validator, bad[middle:]):
                first.push(bad[:middle])
                second.push(bad[middle:])
                first.finish()
                second.finish()

    @on("validator_factory")
    async def test_an_abandoned_check_costs_nobody_anything(self, validator: Validator) -> None:
        """Requests are cancelled in the middle: later ones are judged as if they had not been."""
        self._need_output(validator)
        expected = [output(validator, plain_request(), text) for text in self.accepted]
        for bad in (*self.rejected_answers, *self.accepted):
            for _ in range(5):
                check = validator.check_output(plain_request())
                assert check is not None
                with suppress(RequestRejected):
                    check.push(bad[:-1])
        assert [output(validator, plain_request(), text) for text in self.accepted] == expected

    @on("validator_factory")
    async def test_an_empty_text_is_finished(self, validator: Validator) -> None:
        """ "checked even if it is empty": `finish` without `push`, and pushes of nothing."""
        self._need_output(validator)
        assert output(validator, plain_request(), []) == output(
            validator, plain_request(), ["", ""]
        )

    def test_closing(self, validator_factory: ValidatorFactory) -> None:
        """`aclose`: "Release everything. Closing twice is fine."."""

        async def work(validator: Validator) -> None:
            await validator.check_input(self._requests(self.accepted)[0])
            output(validator, plain_request(), self.accepted[0])

        async def main() -> None:
            async with asyncio.timeout(self.deadline):
                await assert_closes_clean(lambda: self.make(validator_factory), work)

        asyncio.run(main())

    # --- help ------------------------------------------------------------------------------------

    def _requests(self, texts: Iterable[str]) -> list[GenerateRequest]:
        """Each text as a prompt, as a message, and as the last but one of several messages."""
        found = []
        for text in texts:
            asked = ChatMessage(role="user", content=text)
            reply = ChatMessage(role="assistant", content=self.accepted[0])
            sampling = SamplingParams(logit_bias={1: 2.0})
            found.append(GenerateRequest(prompt=text, sampling=sampling))
            for messages in ((asked,), (asked, reply)):
                options = {"option": ["value"]}
                found.append(GenerateRequest(messages=messages, template_options=options))
        return found

    def _need_output(self, validator: Validator) -> None:
        if validator.check_output(plain_request()) is None:
            pytest.skip("check_output gives None: the validator judges no answers")
