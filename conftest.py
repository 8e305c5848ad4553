"""Loaded before any test module.

The folders `themis_core`, `themis_engine` and `themis_testkit` are named like the packages inside
them, and pytest's importlib mode would put the folders in the packages' place. Importing the
packages first prevents that.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

# Before anything imports ONNX Runtime: its telemetry opens files and sockets in the background.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import hypothesis
import pytest

import themis_core  # noqa: F401
import themis_engine  # noqa: F401
import themis_testkit  # noqa: F401

# No timing thresholds: a busy machine must not fail a test. Where changes are judged, the examples
# are the same each time; what others find elsewhere is not that change's fault.
hypothesis.settings.register_profile("themis", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("themis")

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C
# would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_absent: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """For runs that install every optional package."""
    parser.addoption(
        "--nothing-absent",
        action="store_true",
        help="Fail if a test is skipped because a package cannot be imported.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tests that no other version of a dependency would make fail need not run with each."""
    config.addinivalue_line("markers", "endurance: minutes long, about Themis itself")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """What a test has counted: printed when all have run, whatever is captured."""

    def told(text: str) -> None:
        request.node.user_properties.append(("told", text))

    return told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have told."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, text in report.user_properties:
                    if name == "told":
                        terminalreporter.write_line(f"{report.nodeid}: {text}")


@pytest.fixture(autouse=True)
def _no_themis_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have configured Themis through the environment."""
    for name in os.environ:
        if name.startswith("THEMIS_"):
            monkeypatch.delenv(name)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember tests that were skipped because a package is absent."""
    if report.skipped and "could not import" in str(report.longrepr):
        _absent.append(f"{report.nodeid}: {report.longrepr}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """The same for whole modules."""
    if report.skipped and "could not import" in str(report.longrepr):
        _absent.append(f"{report.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `--nothing-absent`, such a skip fails the run."""
    if session.config.getoption("--nothing-absent") and _absent:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("Skipped although everything should be installed:", red=True)
            for line in _absent:
                reporter.write_line(f"  {line}", red=True)
