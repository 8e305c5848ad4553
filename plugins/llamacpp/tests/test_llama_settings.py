"""Settings: what excludes what, what the engine gets, and how large caches become."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from themis_llamacpp import gguf_header
from themis_llamacpp.settings import AdapterFile, LlamaCppSettings
from themis_tiny_model import path

GOOD: dict[str, Any] = {"path": str(path("gguf-f16")), "threads": 1}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"speculation": "draft"}, "needs draft_path"),
        ({"draft_path": "x.gguf"}, "draft_path has no effect"),
        ({"draft_path": "x.gguf", "speculation": "lookup"}, "draft_path has no effect"),
        ({"parallel": 200, "prefix_sequences": 57}, "256 sequences"),
        ({"parallel": 64, "batch_size": 100, "prefix_sequences": 37}, "batch_size"),
        ({"prefix_cache": False, "prefix_sequences": 4}, "prefix_sequences has no effect"),
        ({"prefix_cache": False, "prefix_ram_mib": 4}, "prefix_ram_mib has no effect"),
        ({"prefix_cache": False, "prefix_disk": "x"}, "prefix_disk has no effect"),
    ],
)
def test_settings_that_exclude_each_other(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LlamaCppSettings(**(GOOD | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"draft_tokens": 0},
        {"prefix_ram_mib": -1},
        {"adapters": {"a": {"description": "no path"}}},
        {"adapters": {"a": {"path": "x", "scale": 1}}},
        {"adapter_choice": "chance"},
        {"speculation": "on"},
        {"pooling": "max"},
    ],
)
def test_values_that_are_not_possible(changes: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(GOOD | changes, LlamaCppSettings)


def test_adapters_are_files_or_tables() -> None:
    table = {"a": "a.gguf", "b": {"path": "b.gguf", "description": "for b"}}
    settings = msgspec.convert(GOOD | {"adapters": table}, LlamaCppSettings)
    assert settings.adapters["a"] == "a.gguf"
    assert settings.adapters["b"] == AdapterFile(path="b.gguf", description="for b")


def test_the_draft_model_has_the_same_settings_but_no_adapters() -> None:
    from themis_llamacpp.backend import draft_settings

    own = LlamaCppSettings(
        path="model.gguf",
        context=4096,
        parallel=3,
        kv_type="q8_0",
        adapters={"a": "a.gguf"},
        speculation="draft",
        draft_path=str(path("draft-gguf-f16")),
    )
    draft = draft_settings(own)
    assert draft.path == own.draft_path
    assert (draft.speculation, draft.draft_path, draft.adapters) == ("off", None, {})
    assert (draft.parallel, draft.kv_type) == (3, "q8_0")
    assert draft.context == 2048  # As much as it was trained for.


def test_every_name_of_the_library_that_is_used_is_checked() -> None:
    import themis_llamacpp

    folder = Path(themis_llamacpp.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    used = set(re.findall(r"\blib\.(\w+)", text))
    assert len(used) > 40
    checked = set(re.findall(r'"(\w+)"', (folder / "native.py").read_text()))
    assert used <= checked
    params = set(re.findall(r"\bparams\.(\w+) =", text)) | set(
        re.findall(r"= params\.(\w+) =", text)
    )
    assert params <= checked
    assert "flash_attn_type" in params


class TestSizes:
    """How many cells and sequence ids a model gets."""

    @pytest.fixture(autouse=True)
    def _llama(self) -> None:
        pytest.importorskip("llama_cpp")

    @staticmethod
    def facts(context: int, *, recurrent: bool = False, causal: bool = True) -> Any:
        from themis_llamacpp.facts import Facts

        return Facts(context, causal, recurrent, 0, 8, "last")

    @pytest.mark.parametrize(
        ("context", "changes", "cells"),
        [
            (2048, {}, 8192),
            (2048, {"parallel": 2}, 4096),
            (131_072, {}, 131_072),
            (16_384, {}, 32_768),
            (131_072, {"kv_tokens": 200_000}, 200_000),
            (2048, {"kv_unified": False, "parallel": 3}, 6144),
            (2048, {"kv_unified": False, "parallel": 3, "prefix_sequences": 2}, 10_240),
        ],
    )
    def test_cells(self, context: int, changes: dict[str, Any], cells: int) -> None:
        from themis_llamacpp.loading import sequences
        from themis_llamacpp.memory import kv_tokens

        settings = LlamaCppSettings(**(GOOD | changes))
        count = sequences(self.facts(context), settings)
        assert kv_tokens(settings, context, count) == cells

    @pytest.mark.parametrize(
        ("changes", "kind", "count"),
        [
            ({}, {}, 80),
            ({"parallel": 250}, {}, 256),
            ({"kv_unified": False}, {}, 16),
            ({"kv_unified": False, "prefix_sequences": 3}, {}, 19),
            ({"prefix_sequences": 3}, {}, 19),
            ({"prefix_sequences": 0}, {}, 16),
            ({"prefix_cache": False}, {}, 16),
            ({}, {"recurrent": True}, 24),
            ({}, {"causal": False}, 16),
            ({"batch_size": 50}, {}, 50),
            ({"kv_tokens": 30}, {}, 30),
        ],
    )
    def test_sequences(self, changes: dict[str, Any], kind: dict[str, bool], count: int) -> None:
        from themis_llamacpp.loading import sequences

        settings = LlamaCppSettings(**(GOOD | changes))
        assert sequences(self.facts(2048, **kind), settings) == count

    def test_more_sequences_than_cells_are_refused(self) -> None:
        """llama.cpp would end the process at the first step."""
        from themis_core.errors import ModelLoadFailed

        from .runs import running

        with (
            pytest.raises(ModelLoadFailed, match="at most 8 tokens"),
            running(kv_tokens=8, parallel=9),
        ):
            pass
        with running(kv_tokens=8, parallel=8) as runner:
            assert runner.info.max_sequences == 8

    def test_a_split_cache_has_a_whole_context_for_each_sequence(self) -> None:
        from .runs import logits_of, running

        with running(kv_unified=False, context=256, parallel=2, prefix_sequences=3) as runner:
            assert runner.info.max_sequences == 5
            assert runner.info.context_length == 256
            assert runner.info.kv_capacity == 5 * 256
            for sequence in range(5):
                logits_of(runner, sequence, [5] * 256)


def test_headers_tell_where_tensors_lie() -> None:
    header = gguf_header.read(path("gguf-f16"))
    first = header.tensors["token_embd.weight"]
    assert first.sizes == (256, 1920)
    assert first.length == 256 * 1920 * 2
    assert header.data_start <= first.start < header.data_end
    assert header.types["llama.context_length"] == 4
