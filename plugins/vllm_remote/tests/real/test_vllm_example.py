"""`examples/local-and-vllm`: a small llama.cpp model and a vLLM worker behind one server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import themis_tiny_model

from .servers import MODEL, QUIET
from .test_vllm_kills import alive, descendants

EXAMPLE = Path(__file__).parents[4] / "examples" / "local-and-vllm"
QUESTION = {"role": "user", "content": "What is the capital of France?"}


@contextmanager
def themis(*arguments: str) -> Iterator[str]:
    """A `themis` command that runs until it is stopped; the line that says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "themis_core.cli", *arguments],
        env=os.environ | QUIET,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if "Ctrl-C stops" in line:
                break
        else:
            raise AssertionError("".join(lines))
        yield line
    finally:
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        process.stderr.close()
        process.wait(60)
        assert not alive(below)


def adapted(name: str, folder: Path, changes: dict[str, str]) -> str:
    """A file of the example with other paths."""
    text = (EXAMPLE / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return str(folder / name)


def ask(url: str, **body: Any) -> Any:
    """A chat completion."""
    given = {"messages": [QUESTION], "temperature": 0, "max_tokens": 32} | body
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(given).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["choices"][0]["message"]["content"]


def test_both_models_answer_through_one_server(folder: Path) -> None:
    pytest.importorskip("llama_cpp")
    socket = f"shm://{folder}/large.sock"
    small = "/models/qwen2.5-0.5b-instruct-q8_0.gguf"
    worker = adapted(
        "worker.toml",
        folder,
        {
            "/models/qwen3-32b": f'{MODEL}"\ndtype = "float32',
            "gpu_memory_utilization = 0.9": "enforce_eager = true\n"
            f"kv_cache_memory_bytes = {64 << 20}",
        },
    )
    config = adapted(
        "themis.toml",
        folder,
        {
            "shm:///run/themis/large.sock": socket,
            small: str(themis_tiny_model.path("gguf-f16")),
            "port = 8765": "port = 0",
        },
    )
    with themis("worker", "-c", worker, "--listen", socket), themis("serve", "-c", config) as line:
        found = re.search(r"http://\S+", line)
        assert found is not None
        answers = {model: ask(found[0], model=model) for model in ("small", "large")}
    assert answers == dict.fromkeys(("small", "large"), "The capital of France is Paris.")
