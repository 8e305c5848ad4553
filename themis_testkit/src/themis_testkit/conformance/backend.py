"""All checks of the `Backend` contract, in one class."""

from __future__ import annotations

from themis_testkit.conformance.answers import AnswerChecks
from themis_testkit.conformance.cancelling import CancellationChecks
from themis_testkit.conformance.company import CompanyChecks
from themis_testkit.conformance.extras import ExtraChecks
from themis_testkit.conformance.lifecycle import LifecycleChecks
from themis_testkit.conformance.refusals import RefusalChecks
from themis_testkit.conformance.sampling import SamplingChecks
from themis_testkit.conformance.statistics import StatisticsChecks
from themis_testkit.conformance.stopping import StoppingChecks


class BackendConformance(
    LifecycleChecks,
    AnswerChecks,
    StoppingChecks,
    SamplingChecks,
    CompanyChecks,
    CancellationChecks,
    RefusalChecks,
    StatisticsChecks,
    ExtraChecks,
):
    """Subclass it, and give it the fixture `backend_factory`: nothing else is needed.

    The capabilities that the backend declares choose the checks; the others are skipped, with the
    reason. `ConformanceBase` has the attributes that a subclass may change.
    """
