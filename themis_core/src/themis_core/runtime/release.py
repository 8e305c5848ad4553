"""Step 6, release: output validators see every text before the caller does.

What becomes of a check that fails is decided where the runtime guards its validators: `guards.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from themis_core.contracts import OutputCheck, Validator
from themis_core.messages import Delta, Finished, GenerateEvent, GenerateRequest, ToolCallDelta

# What is checked by itself, as one text: the answer (-2) and the reasoning (-1) of a choice, and
# the arguments of each of its calls (their number).
_ANSWER, _REASONING = -2, -1


class Release:
    """Passes events on; each text goes through checks of its own, one after another."""

    def __init__(self, validators: Sequence[Validator], request: GenerateRequest) -> None:
        self._validators = validators
        self._request = request
        self._checks: dict[tuple[int, int], list[OutputCheck]] = {}

    def pass_on(self, event: GenerateEvent) -> list[GenerateEvent]:
        """What may be sent now in place of `event`. Raises `RequestRejected`."""
        if not self._validators:
            return [event]
        if isinstance(event, Delta):
            return [self._delta(event)]
        if isinstance(event, Finished):
            rest = self._rest(event.index)
            return [rest, event] if rest else [event]
        return [event]

    def _delta(self, event: Delta) -> Delta:
        # Token ids and log-probabilities would tell what the checks change or hold back.
        return Delta(
            index=event.index,
            text=self._push(event.index, _ANSWER, event.text),
            reasoning=self._push(event.index, _REASONING, event.reasoning),
            tool_calls=tuple(
                msgspec.structs.replace(
                    call, arguments=self._push(event.index, call.index, call.arguments)
                )
                for call in event.tool_calls
            ),
        )

    def _push(self, choice: int, part: int, text: str) -> str:
        if not text:
            return text
        for check in self._of(choice, part):
            text = check.push(text)
        return text

    def _rest(self, choice: int) -> Delta | None:
        """What the checks of a choice still hold back, now that it is complete."""
        # An answer without any text is an answer too, and is checked.
        self._of(choice, _ANSWER)
        rest = {part: _finish(checks) for (i, part), checks in self._checks.items() if i == choice}
        calls = tuple(
            ToolCallDelta(index=part, arguments=text)
            for part, text in sorted(rest.items())
            if part >= 0 and text
        )
        text, reasoning = rest.get(_ANSWER, ""), rest.get(_REASONING, "")
        if not (text or reasoning or calls):
            return None
        return Delta(index=choice, text=text, reasoning=reasoning, tool_calls=calls)

    def _of(self, choice: int, part: int) -> list[OutputCheck]:
        key = (choice, part)
        if key not in self._checks:
            made = [validator.check_output(self._request) for validator in self._validators]
            self._checks[key] = [check for check in made if check is not None]
        return self._checks[key]


def _finish(checks: list[OutputCheck]) -> str:
    rest = ""
    for check in checks:
        # What an earlier check lets go at its end still has to pass the later ones.
        rest = (check.push(rest) if rest else "") + check.finish()
    return rest
