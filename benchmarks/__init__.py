"""Themis beside its peers. `python -m benchmarks --help` says what can be measured."""
