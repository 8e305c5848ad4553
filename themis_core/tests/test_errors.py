"""The error tree: stable codes, documented, and whole after a journey."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest

from themis_core.errors import ConfigInvalid, ThemisError, all_error_types

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in all_error_types() if cls is not ThemisError]
    assert len(codes) == len(set(codes))


def test_every_code_is_documented_and_no_other() -> None:
    documented = re.findall(r"^## `(\w+)`", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted({cls.code for cls in all_error_types()})


@pytest.mark.parametrize("cls", all_error_types())
@pytest.mark.parametrize("travel", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_error_survives_copying(cls: type[ThemisError], travel: object) -> None:
    error = cls("It failed.", field="a.b", remedy="Do this.", plugin="p")
    arrived = travel(error)  # type: ignore[operator]
    assert type(arrived) is cls
    assert arrived.to_dict() == error.to_dict()
    assert str(arrived) == str(error)
    assert str(error).startswith("It failed. Do this.")


def test_problems_are_part_of_the_message() -> None:
    error = ConfigInvalid("Wrong:", problems=("one", "two"))
    assert str(pickle.loads(pickle.dumps(error))) == "Wrong:\n  one\n  two"
