"""Step 6, release: output validators see every text before the caller does."""

from __future__ import annotations

from collections.abc import Sequence

from themis_core.contracts import OutputCheck, Validator
from themis_core.messages import Delta, Finished, GenerateEvent, GenerateRequest


class Release:
    """Passes events on; text goes through the checks of its choice, one after another."""

    def __init__(self, validators: Sequence[Validator], request: GenerateRequest) -> None:
        self._validators = validators
        self._request = request
        self._checks: dict[int, list[OutputCheck]] = {}

    def pass_on(self, event: GenerateEvent) -> list[GenerateEvent]:
        """What may be sent now in place of `event`. Raises `RequestRejected`."""
        if not self._validators:
            return [event]
        if isinstance(event, Delta):
            text = event.text
            for check in self._of(event.index):
                text = check.push(text)
            # Token ids and log-probabilities would tell what the checks change or hold back.
            return [Delta(index=event.index, text=text)]
        if isinstance(event, Finished):
            rest = ""
            for check in self._of(event.index):
                # What an earlier check lets go at its end still has to pass the later ones.
                rest = (check.push(rest) if rest else "") + check.finish()
            return [Delta(index=event.index, text=rest), event] if rest else [event]
        return [event]

    def _of(self, index: int) -> list[OutputCheck]:
        if index not in self._checks:
            made = [validator.check_output(self._request) for validator in self._validators]
            self._checks[index] = [check for check in made if check is not None]
        return self._checks[index]
