"""A validator: judges prompts and answers."""

from __future__ import annotations

from typing import Protocol

from themis_core.messages import GenerateRequest


class OutputCheck(Protocol):
    """The check of one answer while it streams.

    The verdict on the stream must equal the verdict on the whole text. A check may hold text back
    as long as it needs, within the bound that its plugin declares.
    """

    def push(self, text: str) -> str:
        """Take new text, return what may be sent on. Raises `RequestRejected`."""
        ...

    def finish(self) -> str:
        """The answer is complete: return the rest. Raises `RequestRejected`."""
        ...


class Validator(Protocol):
    """Judges the prompt before, and each answer during, a generation."""

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request, changed or not. Raises `RequestRejected` with the reason."""
        ...

    def check_output(self, request: GenerateRequest) -> OutputCheck | None:
        """A check for one choice of this request, or None if this validator judges no output."""
        ...

    async def aclose(self) -> None:
        """Release everything. Closing twice is fine."""
        ...
