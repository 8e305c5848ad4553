"""How much of a prompt a step computes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_engine.pace import PrefillPace


def test_a_fixed_pace_learns_nothing() -> None:
    pace = PrefillPace(7)
    pace.observe(1000, 0.001)
    assert pace.tokens == 7


def learn(pace: PrefillPace, fixed: float, slope: float) -> None:
    """Steps of all sizes, each `fixed + slope · tokens` long, the last ones as the pace wants."""
    for tokens in (1, 8, 40, 64, 100, 200, 7, 90, 130, *range(1, 400, 9)):
        pace.observe(tokens, fixed + slope * tokens)
    for _ in range(20):
        pace.observe(pace.tokens, fixed + slope * pace.tokens)


@pytest.mark.parametrize(
    ("fixed", "slope", "chunk"), [(0.01, 0.05, 64), (0.01, 0.0005, 160), (0.002, 0.00002, 4896)]
)
def test_a_step_takes_about_100_ms(fixed: float, slope: float, chunk: int) -> None:
    pace = PrefillPace()
    learn(pace, fixed, slope)
    assert abs(pace.tokens - chunk) <= 32


def test_it_follows_a_machine_that_becomes_slower() -> None:
    pace = PrefillPace()
    learn(pace, 0.0, 0.0001)
    assert pace.tokens > 900
    for _ in range(8):
        learn(pace, 0.0, 0.0005)
    assert 150 < pace.tokens < 250


def test_small_steps_do_not_make_it_slower() -> None:
    """Their time for a token is long, since the fixed part is shared by few."""
    pace = PrefillPace()
    learn(pace, 0.05, 0.0002)
    before = pace.tokens
    for _ in range(30):
        pace.observe(8, 0.05 + 8 * 0.0002)
    assert pace.tokens == before == 224


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e6))))
def test_whatever_is_observed_prompts_go_on(steps: list[tuple[int, float]]) -> None:
    pace = PrefillPace()
    for step in steps:
        pace.observe(*step)
        assert pace.tokens >= 64
