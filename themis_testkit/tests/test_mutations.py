"""Kits that pass everything prove nothing: faults in good plugins, and the check that finds each.

The table stands in `docs/conformance.md`, between two marks. `WRITE_TABLES=1` in the environment
writes it there anew.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from themis_testkit import (
    CacheConformance,
    LruCache,
    MemoryTransport,
    QuotaConformance,
    RunnerConformance,
    TransportConformance,
    ValidatorConformance,
)
from themis_testkit.conformance import Verdict, examine, judge

from . import (
    mutants_backend,
    mutants_cache,
    mutants_client,
    mutants_quota,
    mutants_runner,
    mutants_sequences,
    mutants_server,
    mutants_validator,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- mutations: begin -->\n", "<!-- mutations: end -->\n"
LEAST_CAUGHT = 0.9
LEAST_FAULTS = 40

_names = itertools.count()


class CacheSuite(CacheConformance):
    shrinks: ClassVar[bool] = False
    deadline: ClassVar[float] = 5.0
    examples: ClassVar[int] = 20


class QuotaSuite(QuotaConformance):
    shrinks: ClassVar[bool] = False
    deadline: ClassVar[float] = 5.0
    examples: ClassVar[int] = 20
    tokens: ClassVar[int | None] = 600
    concurrency: ClassVar[int | None] = 4
    refill_seconds: ClassVar[float | None] = 60.0


class ValidatorSuite(ValidatorConformance):
    shrinks: ClassVar[bool] = False
    deadline: ClassVar[float] = 5.0
    examples: ClassVar[int] = 20
    rejected_prompts: ClassVar[tuple[str, ...]] = ("a forbidden word",)
    rejected_answers: ClassVar[tuple[str, ...]] = mutants_validator.WORDS
    never_sent: ClassVar[tuple[str, ...]] = ("forb", "xy")
    hold_back: ClassVar[int | None] = 8


class TransportSuite(TransportConformance):
    deadline: ClassVar[float] = 4.0  # Several of the faults make somebody wait for ever.
    examples: ClassVar[int] = 9


class Kit(NamedTuple):
    """A kit, the good plugin, the bad ones, and what makes a fixture of one."""

    name: str
    suite: type[Any]
    good: Any
    mutants: tuple[type[Any], ...]
    fixtures: Callable[[Any], dict[str, Any]]


KITS = [
    Kit("cache", CacheSuite, LruCache, mutants_cache.MUTANTS, lambda c: {"cache_factory": c}),
    Kit(
        "quota",
        QuotaSuite,
        mutants_quota.Quota,
        mutants_quota.MUTANTS,
        lambda c: {"quota_factory": c},
    ),
    Kit(
        "validator",
        ValidatorSuite,
        mutants_validator.Words,
        mutants_validator.MUTANTS,
        lambda c: {"validator_factory": c},
    ),
    Kit(
        "transport",
        TransportSuite,
        MemoryTransport,
        mutants_client.MUTANTS + mutants_server.MUTANTS,
        lambda c: {"transport_factory": lambda: (c(), f"memory://{next(_names)}")},
    ),
    Kit(
        "runner",
        RunnerConformance,
        mutants_runner.Plain,
        mutants_runner.MUTANTS + mutants_sequences.MUTANTS,
        lambda c: {"runner_factory": c},
    ),
]


class Row(NamedTuple):
    """A fault, and the first check that finds it; None if none does."""

    kit: str
    fault: str
    meaning: str
    check: str | None


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_the_good_plugin_passes(kit: Kit) -> None:
    verdicts = list(examine(kit.suite, kit.fixtures(kit.good)))
    assert [v for v in verdicts if v.outcome == "failed"] == []
    assert sum(v.outcome == "passed" for v in verdicts) >= 10


# A broken plugin leaves what a good one cleans up.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)  # About a minute, on a machine that does nothing else.
def test_the_kits_find_the_faults(tell: Callable[[str], None]) -> None:
    rows = [*_backend_rows(), *(row for kit in KITS for row in _rows(kit))]
    caught = sum(row.check is not None for row in rows)
    table = _table(rows, caught)
    tell(table)
    assert len(rows) >= LEAST_FAULTS
    assert len({(row.kit, row.fault) for row in rows}) == len(rows)
    assert caught >= LEAST_CAUGHT * len(rows), [row for row in rows if row.check is None]
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    written, after = rest.split(END)
    if os.environ.get("WRITE_TABLES"):
        DOCUMENT.write_text(before + BEGIN + table + END + after, encoding="utf-8")
    else:
        assert written == table, "docs/conformance.md is old: run with WRITE_TABLES=1"


def test_a_verdict_tells_why() -> None:
    verdicts = {v.check: v for v in examine(CacheSuite, {})}
    assert {v.outcome for v in verdicts.values()} == {"skipped"}
    assert "cache_factory" in verdicts["test_keys_are_exact"].reason
    failed = judge(CacheSuite, "test_keys_are_exact", {"cache_factory": mutants_cache.CaseBlind})
    assert failed.outcome == "failed"
    assert failed.reason.startswith("AssertionError: b'k'")
    assert isinstance(failed, Verdict)


def _rows(kit: Kit) -> Iterator[Row]:
    for mutant in kit.mutants:
        verdicts = examine(kit.suite, kit.fixtures(mutant))
        check = next((v.check for v in verdicts if v.outcome == "failed"), None)
        yield Row(kit.name, mutant.__name__, _meaning(mutant), check)


def _backend_rows() -> Iterator[Row]:
    for mutant, check, parameters in mutants_backend.MUTANTS:
        fixtures = {"backend_factory": mutant, **parameters}
        verdict = judge(mutants_backend.Suite, check, fixtures)
        found = check if verdict.outcome == "failed" else None
        yield Row("backend", mutant.__name__, _meaning(mutant), found)


def _meaning(mutant: type[Any]) -> str:
    return (mutant.__doc__ or "").strip()


def _found(row: Row) -> str:
    return "**missed**" if row.check is None else f"`{row.check}`"


def _table(rows: list[Row], caught: int) -> str:
    lines = [
        f"{caught} of {len(rows)} faults are found.",
        "",
        "| kit | fault | what it does | found first by |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.kit} | `{row.fault}` | {row.meaning} | {_found(row)} |" for row in rows]
    return "".join(f"{line}\n" for line in lines)
