"""Describing the plugin costs nothing."""

from __future__ import annotations

import subprocess
import sys

from themis_testkit.plugin import ReferenceSettings, themis_backends


def test_the_descriptor() -> None:
    (plugin,) = themis_backends()
    assert (plugin.name, plugin.settings) == ("reference", ReferenceSettings)


def test_listing_it_imports_no_engine() -> None:
    heavy = ("numpy", "tokenizers", "pytest", "hypothesis", "themis_engine")
    program = f"import sys, themis_testkit.plugin; assert not {{*{heavy}}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
