"""Runs llama.cpp's own C++ server, as xllamacpp embeds it, until SIGTERM. Started by `peers`."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import xllamacpp  # type: ignore[import-not-found, unused-ignore]


def main(settings: dict[str, Any]) -> None:
    """Start the server with `settings`, and wait to be told to stop."""
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {"bench"}
    params.port = settings["port"]
    params.n_parallel = settings["parallel"]
    params.n_ctx = settings["parallel"] * settings["context"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    if not settings["reuse"]:
        params.cache_ram_mib = 0  # No prompt comes twice: keeping them would only cost time.
    params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{xllamacpp.get_system_info()}\nlistening at {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(json.loads(sys.argv[1]))
