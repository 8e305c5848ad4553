"""Makes the export script importable: it lives beside the bundled model, not in its package."""

from __future__ import annotations

import sys
from pathlib import Path

_TINY = str(Path(__file__).parents[2] / "tiny_model")
if _TINY not in sys.path:
    sys.path.insert(0, _TINY)
