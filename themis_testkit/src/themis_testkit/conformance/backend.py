"""All checks of the `Backend` contract, in one class."""

from __future__ import annotations

from themis_testkit.conformance.adapters import AdapterChecks
from themis_testkit.conformance.answers import AnswerChecks
from themis_testkit.conformance.cancelling import CancellationChecks
from themis_testkit.conformance.choices import ChoiceChecks
from themis_testkit.conformance.company import CompanyChecks
from themis_testkit.conformance.constraints import ConstraintChecks
from themis_testkit.conformance.embeddings import EmbeddingChecks
from themis_testkit.conformance.extras import ExtraChecks
from themis_testkit.conformance.lifecycle import LifecycleChecks
from themis_testkit.conformance.refusals import RefusalChecks
from themis_testkit.conformance.resuming import ResumeChecks
from themis_testkit.conformance.reuse import ReuseChecks
from themis_testkit.conformance.sampling import SamplingChecks
from themis_testkit.conformance.statistics import StatisticsChecks
from themis_testkit.conformance.stopping import StoppingChecks
from themis_testkit.conformance.tools import ToolChecks


class BackendConformance(
    LifecycleChecks,
    AnswerChecks,
    StoppingChecks,
    SamplingChecks,
    CompanyChecks,
    CancellationChecks,
    RefusalChecks,
    StatisticsChecks,
    AdapterChecks,
    ChoiceChecks,
    ConstraintChecks,
    EmbeddingChecks,
    ResumeChecks,
    ReuseChecks,
    ToolChecks,
    ExtraChecks,
):
    """Subclass it, and give it the fixture `backend_factory`: nothing else is needed.

    The capabilities that the backend declares choose the checks; the others are skipped, with the
    reason. `ConformanceBase` has the attributes that a subclass may change.
    """
