"""From what a model writes to answer, reasoning and tool calls, while it is being written."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from themis_core.messages import ToolCallDelta
from themis_engine.tools.header import Header, Read, read_json, read_named
from themis_engine.tools.scan import ObjectScanner
from themis_engine.tools.style import END_TAG, PYTHON, Style

_ALPHANUMERIC = string.ascii_letters + string.digits
_NEXT_IN_LIST = re.compile(r"\s*,\s*(?=\{)")
_LIST_COULD_GO_ON = re.compile(r"\s*(?:,\s*)?\Z")
_LIST_ENDS = re.compile(r"\s*\]")
_BARE_NEXT = re.compile(r"[\s;,]*(?=\{)")


@dataclass(frozen=True, slots=True)
class Piece:
    """New output, apart by kind."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class OutputParser:
    """Reads one choice. The result does not depend on how its text is cut into pieces.

    Reasoning stands between `thinking`'s two tags, at the very beginning; if it `opened` already at
    the end of the prompt, the first tag is missing. It ends at the first end tag, or with the
    output; line breaks around it are dropped. Calls are read where they begin as `style` says and
    name one of `tools`, until there are `limit` of them; space around them is dropped. Everything
    else is text, as it was written, and so is what only began like a call.

    A call's arguments are passed on as they come, so what is wrong with them only later cannot be
    taken back: `called` tells whether a call is complete.
    """

    def __init__(
        self,
        style: Style | None,
        tools: Iterable[str] = (),
        *,
        thinking: tuple[str, str] | None = None,
        opened: bool = False,
        limit: int | None = None,
        markers: Mapping[int, str] | None = None,
    ) -> None:
        self.markers: Mapping[int, str] = markers or {}
        self.called = False
        self._style = style
        self._tools = frozenset(tools)
        self._thinking = thinking
        self._opened = opened
        self._limit = limit
        self._state: Callable[[], bool] = self._start
        self._buffer = ""
        self._raw = ""  # What was read of a call that has not been announced.
        self._final = False
        self._fresh = True  # Nothing but space has been given out as text.
        self._drop_lines = False
        self._calls = 0
        self._complete = 0
        self._scanner = ObjectScanner()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._deltas: list[ToolCallDelta] = []

    def push(self, text: str) -> Piece:
        """Take some text, return what is certain by now."""
        self._buffer += text
        while self._state():
            pass
        return self._taken()

    def finish(self) -> Piece:
        """The rest, when no more text comes."""
        self._final = True
        while self._state():
            pass
        self._text.append(self._raw + self._buffer)
        self._raw = self._buffer = ""
        return self._taken()

    # --- states: each reads from the buffer, and returns False when it needs more text -----------

    def _start(self) -> bool:
        """Before anything was written."""
        if self._thinking is not None:
            opening = self._thinking[0]
            rest = self._buffer.lstrip()
            if rest.startswith(opening):
                self._buffer = rest[len(opening) :]
                return self._go(self._think_begins)
            if opening.startswith(rest) and not self._final:
                return False
            if self._opened:
                return self._go(self._think_begins)
        return self._go(self._answer_begins)

    def _think_begins(self) -> bool:
        self._buffer = self._buffer.lstrip("\n")
        return self._go(self._think) if self._buffer or self._final else False

    def _think(self) -> bool:
        assert self._thinking is not None
        closing = self._thinking[1]
        before, found, behind = self._buffer.partition(closing)
        if found:
            self._reasoning.append(before.rstrip("\n"))
            self._buffer = behind
            self._drop_lines = True
            return self._go(self._answer_begins)
        keep = len(before) if self._final else len(before[: _held(before, closing)].rstrip("\n"))
        self._reasoning.append(before[:keep])
        self._buffer = before[keep:]
        return False

    def _answer_begins(self) -> bool:
        if self._drop_lines:
            self._buffer = self._buffer.lstrip("\n")
        if self._style is None or self._style.kind != "bare":
            return self._go(self._answer) if self._buffer else False
        rest = self._buffer.lstrip()
        for opening in (PYTHON, "{"):
            if opening.startswith(rest) and rest != opening and not self._final:
                return False
            if rest.startswith(opening):
                self._raw = self._buffer[: len(self._buffer) - len(rest)]
                self._buffer = rest
                if opening == PYTHON:
                    self._raw += opening
                    self._buffer = rest[len(opening) :]
                return self._go(self._header)
        return self._go(self._answer) if self._buffer else False

    def _answer(self) -> bool:
        """Text, and in it, perhaps, the marker of a call."""
        style = self._style
        marker = style.marker if style is not None else ""
        if style is None or not marker:
            self._give(self._buffer)
            self._buffer = ""
            return False
        before, found, behind = self._buffer.partition(marker)
        if found:
            answer = before.rstrip()
            self._give(answer)
            self._raw = before[len(answer) :] + marker
            self._buffer = behind
            return self._go(self._list if style.kind == "list" else self._header)
        if self._final:
            # Space behind calls is no answer.
            behind_call = self._calls > 0 and self._fresh
            self._give(before if before.strip() or not behind_call else "")
            self._buffer = ""
            return False
        keep = len(before[: _held(before, marker)].rstrip())
        self._give(before[:keep])
        self._buffer = before[keep:]
        return False

    def _list(self) -> bool:
        """Behind the marker of a list."""
        rest = self._buffer.lstrip()
        if not rest and not self._final:
            return False
        if not rest.startswith("["):
            return self._no_call()
        self._raw += self._buffer[: len(self._buffer) - len(rest) + 1]
        self._buffer = rest[1:]
        return self._go(self._header)

    def _header(self) -> bool:
        assert self._style is not None
        read = read_named if self._style.kind == "named" else read_json
        found = read(self._buffer)
        if found is Read.MORE and not self._final:
            return False
        if not isinstance(found, Header) or found.name not in self._tools:
            return self._no_call()
        self._raw = ""
        self._buffer = self._buffer[found.start :]
        index, self._calls = self._calls, self._calls + 1
        self._deltas.append(
            ToolCallDelta(
                index=index,
                id=found.id or self._new_id(),
                name=found.name,
                arguments=found.arguments or "",
            )
        )
        if found.arguments is not None:
            return self._call_complete()
        self._scanner = ObjectScanner()
        return self._go(self._arguments)

    def _arguments(self) -> bool:
        assert self._style is not None
        end = self._scanner.end(self._buffer)
        written = self._buffer[:end]
        self._buffer = self._buffer[len(written) :]
        if written:
            self._deltas.append(ToolCallDelta(index=self._calls - 1, arguments=written))
        if end is None:
            return False
        if self._style.kind == "named":
            return self._call_complete()
        return self._go(self._members)

    def _members(self) -> bool:
        """What stands behind the arguments in a call's object."""
        rest = self._buffer.lstrip()
        if not rest and not self._final:
            return False
        if not rest.startswith(("}", ",")):
            return self._go(self._answer_of_the_rest)  # The object does not end.
        end = ObjectScanner(depth=1).end(self._buffer)
        if end is None:
            return False
        self._buffer = self._buffer[end:]
        return self._call_complete()

    def _closing(self) -> bool:
        """Behind a call's object: the end tag, without which the call counts too."""
        rest = self._buffer.lstrip()
        if END_TAG.startswith(rest) and rest != END_TAG and not self._final:
            return False
        if rest.startswith(END_TAG):
            self._buffer = rest[len(END_TAG) :]
        return self._go(self._answer_of_the_rest if self._at_limit else self._answer)

    def _next_in_list(self) -> bool:
        if not self._final and _LIST_COULD_GO_ON.match(self._buffer):
            return False
        going_on = None if self._at_limit else _NEXT_IN_LIST.match(self._buffer)
        if going_on is not None:
            self._raw, self._buffer = going_on[0], self._buffer[going_on.end() :]
            return self._go(self._header)
        end = _LIST_ENDS.match(self._buffer)
        if end is not None:
            self._buffer = self._buffer[end.end() :]
        return self._go(self._answer_of_the_rest)

    def _next_bare(self) -> bool:
        if not self._final and not self._buffer.strip(" \t\r\n;,"):
            return False
        going_on = None if self._at_limit else _BARE_NEXT.match(self._buffer)
        if going_on is not None:
            self._raw, self._buffer = going_on[0], self._buffer[going_on.end() :]
            return self._go(self._header)
        return self._go(self._answer_of_the_rest)

    def _answer_of_the_rest(self) -> bool:
        """Text that can hold no more calls. Space alone is no answer."""
        if self._buffer.strip() or not self._fresh:
            self._give(self._buffer)
            self._buffer = ""
        elif self._final:
            self._buffer = ""
        return False

    # --- steps ------------------------------------------------------------------------------------

    @property
    def _at_limit(self) -> bool:
        return self._limit is not None and self._complete >= self._limit

    def _call_complete(self) -> bool:
        assert self._style is not None
        self.called = True
        self._complete += 1
        self._fresh = True
        if self._style.kind == "list":
            return self._go(self._next_in_list)
        if self._style.kind == "bare":
            return self._go(self._next_bare)
        if self._style.kind == "tagged":
            return self._go(self._closing)
        return self._go(self._answer_of_the_rest if self._at_limit else self._answer)

    def _no_call(self) -> bool:
        """It was text. A marker further on may still begin a call."""
        self._give(self._raw)
        self._raw = ""
        bare = self._style is not None and self._style.kind == "bare"
        return self._go(self._answer_of_the_rest if bare else self._answer)

    def _give(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._fresh = False

    def _go(self, state: Callable[[], bool]) -> bool:
        self._state = state
        return True

    def _taken(self) -> Piece:
        piece = Piece("".join(self._text), "".join(self._reasoning), tuple(self._deltas))
        self._text, self._reasoning, self._deltas = [], [], []
        return piece

    def _new_id(self) -> str:
        """Mistral's templates take nine letters and digits; others are written as OpenAI's."""
        assert self._style is not None
        if self._style.kind in ("list", "named"):
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


def _held(text: str, marker: str) -> int:
    """Where the longest end of `text` begins that `marker` begins with."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return len(text) - length
    return len(text)
