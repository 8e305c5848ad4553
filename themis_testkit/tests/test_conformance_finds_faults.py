"""Faults that several checks of the backend's kit find; the others are in `test_mutations.py`."""

from __future__ import annotations

import pytest

from themis_testkit import BackendConformance
from themis_testkit.conformance import judge

from .mutants_backend import AGAIN, Case, Faithful, Suite


@pytest.mark.parametrize("case", AGAIN, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_faults_are_found(case: Case) -> None:
    fault, check, parameters = case
    verdict = judge(Suite, check, {"backend_factory": fault, **parameters})
    assert verdict.outcome == "failed", verdict


def test_the_faithful_one_has_no_fault() -> None:
    BackendConformance().test_event_order(Faithful)
    with pytest.raises(NotImplementedError):
        BackendConformance.backend_factory.__wrapped__(BackendConformance())  # type: ignore[attr-defined]
