"""Prefixes in RAM and on disk: what comes back is what was there, or nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from themis_core.errors import BackendFailed
from themis_core.messages import AdapterWeight
from themis_engine import Batch
from themis_engine.kv import PrefixKey
from themis_engine.kv.manager import adapters_of
from themis_engine.kv.store import PrefixStore
from themis_testkit.fakes.toy_runner import ToyRunner

KEY = PrefixKey((), ("tenant", None))
TOKENS = list(range(1, 41))


def store(folder: Path | None = None, **changes: Any) -> PrefixStore:
    settings: dict[str, Any] = {
        "ram_bytes": 10**6,
        "folder": folder,
        "disk_bytes": 10**6,
        "truncates": True,
    }
    return PrefixStore(changes.pop("fingerprint", "model"), **(settings | changes))


def runner_with(tokens: list[int]) -> ToyRunner:
    runner = ToyRunner(context=128, kv=512, max_batch=128)
    count = len(tokens)
    runner.forward(
        Batch(
            tokens=np.array(tokens, np.int32),
            positions=np.arange(count, dtype=np.int32),
            sequences=np.zeros(count, np.int32),
            logit_rows=np.array([], np.int32),
        )
    )
    return runner


def save(s: PrefixStore, tokens: list[int] = TOKENS, key: PrefixKey = KEY) -> None:
    s.save(runner_with(tokens), 0, key, tuple(tokens))


def brought_back(s: PrefixStore, tokens: list[int], key: PrefixKey = KEY) -> list[int] | None:
    found = s.find(key, [*tokens, 63], longer_than=0)
    if found is None:
        return None
    runner = ToyRunner(context=128, kv=512)
    s.restore(runner, 2, found)
    return runner.kv[2]


def test_ram() -> None:
    s = store()
    save(s)
    assert brought_back(s, [*TOKENS, 50, 51]) == TOKENS
    assert brought_back(s, TOKENS[:36]) == TOKENS, "a longer one is as good"
    assert brought_back(s, TOKENS, PrefixKey((), ("other", None))) is None
    assert brought_back(s, TOKENS, PrefixKey((AdapterWeight(name="x"),), KEY.salt)) is None
    assert s.find(KEY, [*TOKENS, 63], longer_than=20) is None, "not worth it"


def test_the_longest_prefix_is_found() -> None:
    s = store()
    for length in (40, 60, 50):
        save(s, [t % 64 for t in range(1, length + 1)])
    found = s.find(KEY, [t % 64 for t in range(1, 56)], longer_than=0)
    assert found is not None
    assert len(found.tokens) == 60
    assert len(s) == 2, "the one of 50 is a part of the one of 60"


def test_a_model_that_cannot_be_cut_gets_whole_states_only() -> None:
    s = store(truncates=False)
    save(s)
    assert brought_back(s, TOKENS[:36]) is None
    save(s, TOKENS[:36])
    assert brought_back(s, TOKENS[:36]) == TOKENS[:36]


def test_ram_is_bounded_and_the_least_recent_goes() -> None:
    size = len(runner_with(TOKENS).save(0))
    s = store(ram_bytes=int(2.5 * size))
    variants = [[i, *TOKENS[1:]] for i in (1, 2, 3)]
    save(s, variants[0])
    save(s, variants[1])
    assert brought_back(s, variants[0]) is not None  # Used, so the second is older now.
    save(s, variants[2])
    assert [brought_back(s, v) is not None for v in variants] == [True, False, True]


def test_disk_and_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    s = store(folder, ram_bytes=0)
    save(s)
    s.close()
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert b"tenant" not in file.read_bytes()
    again = store(folder, ram_bytes=0)
    assert brought_back(again, TOKENS) == TOKENS
    assert brought_back(again, TOKENS, PrefixKey((), ("other", None))) is None
    again.close()
    other_model = store(folder, fingerprint="another")
    assert brought_back(other_model, TOKENS) is None
    other_model.close()
    assert file.exists()


def test_prefixes_with_adapters_are_not_written(tmp_path: Path) -> None:
    s = store(tmp_path)
    key = PrefixKey((AdapterWeight(name="german"),), KEY.salt)
    save(s, key=key)
    assert brought_back(s, TOKENS, key) == TOKENS
    s.close()
    assert not list(tmp_path.iterdir())


def test_a_forgotten_adapter_takes_its_prefixes_along() -> None:
    s = store()
    keys = [PrefixKey((AdapterWeight(name=name),), KEY.salt) for name in ("german", "json")]
    for key in [KEY, *keys]:
        save(s, key=key)
    s.forget(adapters_of("german"))
    assert [brought_back(s, TOKENS, key) is None for key in [KEY, *keys]] == [False, True, False]


@pytest.mark.parametrize("where", [0, 20, 60, 200, -1])
def test_a_damaged_file_is_found_out_and_deleted(tmp_path: Path, where: int) -> None:
    s = store(tmp_path, ram_bytes=0)
    save(s)
    s.close()
    (file,) = tmp_path.iterdir()
    again = store(tmp_path, ram_bytes=0)
    data = bytearray(file.read_bytes())
    data[where] ^= 0x40
    file.write_bytes(data)
    found = again.find(KEY, [*TOKENS, 63], longer_than=0)
    assert found is not None
    runner = ToyRunner(context=128, kv=512)
    with pytest.raises(BackendFailed, match="is lost"):
        again.restore(runner, 0, found)
    assert not file.exists()
    assert again.find(KEY, [*TOKENS, 63], longer_than=0) is None
    again.close()


@pytest.mark.parametrize("length", [0, 10, 40, 300])
def test_a_cut_file_is_no_prefix(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    s = store(tmp_path, ram_bytes=0)
    save(s)
    s.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    with caplog.at_level(logging.WARNING):
        again = store(tmp_path, ram_bytes=0)
    again.close()
    assert len(again) == 0


def test_a_file_that_vanishes_is_no_harm(tmp_path: Path) -> None:
    s = store(tmp_path, ram_bytes=0)
    save(s)
    s.close()
    again = store(tmp_path, ram_bytes=0)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(BackendFailed, match="is lost"):
        brought_back(again, TOKENS)
    again.close()


def test_a_full_disk_is_told_and_leaves_nothing_half(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Path:
        raise OSError(28, "No space left on device")

    s = store(tmp_path, ram_bytes=0)
    monkeypatch.setattr(Path, "rename", full)
    with caplog.at_level(logging.WARNING):
        save(s)
        s.close()
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_disk_is_bounded(tmp_path: Path) -> None:
    s = store(tmp_path, ram_bytes=0)
    save(s)
    s.close()
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    again = store(tmp_path, ram_bytes=0, disk_bytes=2 * size)
    for i in range(2, 7):
        save(again, [i, *TOKENS[1:]])
    again.close()
    assert len(list(tmp_path.iterdir())) <= 2
