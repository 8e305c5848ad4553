"""`BannedWords`, with one fault each."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from themis_core.errors import RequestRejected
from themis_core.messages import GenerateRequest
from themis_testkit import BannedWords
from themis_testkit.fakes.banned_words import BannedWordsCheck

_kept: list[str] = []
WORDS = ("forbidden", "xyzzy")


class Words(BannedWords):
    """Without a fault; `check` is the class of its checks."""

    check: Any = BannedWordsCheck

    def __init__(self) -> None:
        super().__init__(WORDS)

    def check_output(self, request: GenerateRequest) -> BannedWordsCheck:
        return self.check(self.words)  # type: ignore[no-any-return]


class HoldsAll(Words):
    """an answer is held back until its end"""

    class check(BannedWordsCheck):  # noqa: N801
        def push(self, text: str) -> str:
            self._held += super().push(text)
            return ""


class HoldsOneMore(Words):
    """one character more than the bound is held back"""

    class check(BannedWordsCheck):  # noqa: N801
        tail = ""

        def push(self, text: str) -> str:
            text = self.tail + super().push(text)
            self.tail = text[-1:]
            return text[:-1]

        def finish(self) -> str:
            return self.tail + super().finish()


class SeesPiecesOnly(Words):
    """each piece is judged by itself, so divided words pass"""

    class check(BannedWordsCheck):  # noqa: N801
        def push(self, text: str) -> str:
            self._held = ""
            return super().push(text) + super().finish()


class LosesTheEnd(Words):
    """what is held back at the end is lost"""

    class check(BannedWordsCheck):  # noqa: N801
        def finish(self) -> str:
            return ""


class SaysItTwice(Words):
    """what was held back is sent twice"""

    class check(BannedWordsCheck):  # noqa: N801
        def finish(self) -> str:
            return super().finish() * 2


class SendsFirst(Words):
    """everything is sent at once, and judged at the end"""

    class check(BannedWordsCheck):  # noqa: N801
        whole = ""

        def push(self, text: str) -> str:
            self.whole += text
            return text

        def finish(self) -> str:
            BannedWordsCheck(WORDS).push(self.whole)
            return ""


class SharedState(Words):
    """all checks of a validator hold back in one place"""

    def __init__(self) -> None:
        super().__init__()
        self.one = BannedWordsCheck(WORDS)

    def check_output(self, request: GenerateRequest) -> BannedWordsCheck:
        return self.one


class Grudge(Words):
    """after one refusal every answer is refused"""

    def __init__(self) -> None:
        super().__init__()
        self.angry = False

    def check_output(self, request: GenerateRequest) -> BannedWordsCheck:
        owner = self

        class Check(BannedWordsCheck):
            def push(self, text: str) -> str:
                try:
                    if owner.angry:
                        raise RequestRejected("Once is enough.")
                    return super().push(text)
                except RequestRejected:
                    owner.angry = True
                    raise

        return Check(self.words)


class JudgesNothing(Words):
    """no answer is ever refused"""

    class check(BannedWordsCheck):  # noqa: N801
        def push(self, text: str) -> str:
            return text


class JudgesNoMessages(Words):
    """prompts are judged, messages are not"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        return request if request.messages else await super().check_input(request)


class LastMessageOnly(Words):
    """of several messages the last alone is judged"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        last = msgspec.structs.replace(request, messages=request.messages[-1:])
        await super().check_input(last)
        return request


class ReturnsNothing(Words):
    """check_input returns None"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        await super().check_input(request)
        return None  # type: ignore[return-value]


class NewName(Words):
    """check_input makes a new request with another request_id"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        await super().check_input(request)
        return msgspec.structs.replace(request, request_id="another")


class ChangesOptions(Words):
    """it writes into a dictionary of the request that it was given"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        request.sampling.logit_bias[50256] = -100.0
        return await super().check_input(request)


class ChangesOnOutput(Words):
    """check_output writes into the request"""

    def check_output(self, request: GenerateRequest) -> BannedWordsCheck:
        request.template_options["checked"] = True
        return super().check_output(request)


class WrongError(Words):
    """a prompt is refused with ValueError"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        try:
            return await super().check_input(request)
        except RequestRejected as error:
            raise ValueError(error.message) from error


class Silent(Words):
    """a refusal has no text"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        try:
            return await super().check_input(request)
        except RequestRejected as error:
            raise RequestRejected("") from error


class CrashesOnIds(Words):
    """a prompt of token ids is a TypeError"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        if request.prompt is not None:
            request.prompt.index("" if isinstance(request.prompt, str) else "x")
        return await super().check_input(request)


class MixesRequests(Words):
    """two prompts at once: both get the later request"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        self.last = request
        await super().check_input(request)
        await asyncio.sleep(0)
        return self.last


class LockStays(Words):
    """a cancelled check_input keeps the lock"""

    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        await self.lock.acquire()
        try:
            await asyncio.sleep(0)
            return await super().check_input(request)
        except RequestRejected:
            self.lock.release()
            raise
        finally:
            if not asyncio.current_task().cancelling() and self.lock.locked():  # type: ignore[union-attr]
                self.lock.release()


class WrongPlaces(Words):
    """what is sent is lower case"""

    class check(BannedWordsCheck):  # noqa: N801
        def push(self, text: str) -> str:
            return super().push(text.lower())


class NoEmptyText(Words):
    """finish without a push raises"""

    class check(BannedWordsCheck):  # noqa: N801
        seen = False

        def push(self, text: str) -> str:
            self.seen = True
            return super().push(text)

        def finish(self) -> str:
            assert self.seen
            return super().finish()


class KeepsAnswers(Words):
    """every answer stays in memory for ever"""

    class check(BannedWordsCheck):  # noqa: N801
        def push(self, text: str) -> str:
            _kept.append(text)
            return super().push(text)


class Blocks(Words):
    """check_input keeps the event loop busy, so that no budget can cut it"""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        time.sleep(0.001)  # noqa: ASYNC251 - that is the fault.
        return await super().check_input(request)


class ClosesOnce(Words):
    """closing twice raises"""

    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise RuntimeError("it is closed")
        self.closed = True


MUTANTS = (
    HoldsAll,
    HoldsOneMore,
    SeesPiecesOnly,
    LosesTheEnd,
    SaysItTwice,
    SendsFirst,
    SharedState,
    Grudge,
    JudgesNothing,
    JudgesNoMessages,
    LastMessageOnly,
    ReturnsNothing,
    NewName,
    ChangesOptions,
    ChangesOnOutput,
    WrongError,
    Silent,
    CrashesOnIds,
    MixesRequests,
    LockStays,
    WrongPlaces,
    NoEmptyText,
    KeepsAnswers,
    Blocks,
    ClosesOnce,
)
