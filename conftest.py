"""Loaded before any test module.

The folders `themis_core`, `themis_engine` and `themis_testkit` are named like the packages inside
them, and pytest's importlib mode would put the folders in the packages' place. Importing the
packages first prevents that.
"""

import themis_core  # noqa: F401
import themis_engine  # noqa: F401
import themis_testkit  # noqa: F401
