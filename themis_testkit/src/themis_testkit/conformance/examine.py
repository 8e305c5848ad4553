"""`examine`: run a kit in code instead of by pytest, and get a verdict of each check."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import pytest

Outcome = Literal["passed", "failed", "skipped"]


class Verdict(NamedTuple):
    """What became of one check; `reason` is why it failed, or was skipped."""

    check: str
    outcome: Outcome
    reason: str = ""


def examine(suite: type[Any], fixtures: Mapping[str, Any]) -> Iterator[Verdict]:
    """The verdicts of all checks of `suite`, each run when it is asked for.

    Those of the suite itself come first, then those of its bases, each in order of definition.

    `fixtures` has the values of the suite's fixtures by name. A check that wants another one, or
    that pytest would run with several parameters, is skipped.
    """
    for name in _checks(suite):
        yield judge(suite, name, fixtures)


def judge(suite: type[Any], check: str, arguments: Mapping[str, Any]) -> Verdict:
    """The verdict of one check; `arguments` has more than it wants."""
    method = getattr(suite(), check)
    wanted = list(inspect.signature(method).parameters)
    missing = [name for name in wanted if name not in arguments]
    if missing:
        return Verdict(check, "skipped", f"{', '.join(missing)} is not given")
    try:
        method(**{name: arguments[name] for name in wanted})
    except pytest.skip.Exception as skipped:
        return Verdict(check, "skipped", str(skipped))
    except (KeyboardInterrupt, SystemExit):
        raise
    # What a broken plugin raises may be anything; `pytest.fail` and a lost task's
    # `CancelledError` are no `Exception`.
    except BaseException as error:  # noqa: BLE001
        return Verdict(check, "failed", f"{type(error).__name__}: {error}")
    return Verdict(check, "passed")


def _checks(suite: type[Any]) -> list[str]:
    names = [name for cls in suite.__mro__ for name in vars(cls)]
    return [name for name in dict.fromkeys(names) if name.startswith("test_")]
