"""``python -m train``: trains all models and writes all files."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from .build import build

DATA = Path(__file__).resolve().parents[1] / "src" / "themis_tiny_model" / "data"
REPORT = Path(__file__).with_name("report.json")


def main() -> None:
    """Parses the command line and builds everything."""
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the files")
    parser.add_argument("--seed", type=int, default=20, help="seed of every random choice")
    parser.add_argument("--quick", action="store_true", help="a short run, to try the pipeline")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--work", type=Path, default=Path("build"), help="folder for checkpoints")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    report = options.work / "report.json" if options.quick else REPORT
    build(options.out, options.seed, options.quick, options.work, report)
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
