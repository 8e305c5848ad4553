"""A validator: judges prompts and answers."""

from __future__ import annotations

from typing import Protocol

from themis_core.messages import GenerateRequest


class OutputCheck(Protocol):
    """The check of one text while it streams: an answer, its reasoning, or a call's arguments.

    The verdict on the stream must equal the verdict on the whole text. A check may hold text back
    as long as it needs, within the bound that its plugin declares.

    Both methods run on the event loop and cannot be cut: while they compute, nothing else does.
    """

    def push(self, text: str) -> str:
        """Take new text, return what may be sent on. Raises `RequestRejected`."""
        ...

    def finish(self) -> str:
        """The text is complete: return the rest. Raises `RequestRejected`."""
        ...


class Validator(Protocol):
    """Judges the prompt before, and each answer during, a generation."""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request, changed or not. Raises `RequestRejected` with the reason.

        `request.model` is the configured name, never empty and no alias. A validator may put
        another name or alias there: later validators see it as it was put, and from the quota on
        the request is one to that model (`ModelNotFound` if there is none). A changed `timeout`
        counts from the acceptance of the request too. When the time is up, or after the
        validator's `Budget`, this is cancelled.
        """
        ...

    def check_output(self, request: GenerateRequest) -> OutputCheck | None:
        """A check for one text of one choice, or None if this validator judges no output.

        Each choice has its answer, checked even if it is empty, its reasoning, and the arguments
        of each tool call; each of them is a text of its own and gets a check of its own.
        `request` is the one that the backend gets.
        """
        ...

    async def aclose(self) -> None:
        """Release everything. Closing twice is fine."""
        ...
