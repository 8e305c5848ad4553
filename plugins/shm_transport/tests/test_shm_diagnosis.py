"""What `themis doctor` tells of this host is what was tried, and failures are said."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from themis_shm_transport import diagnosis

FDS = Path("/proc/self/fd")


@pytest.fixture
def limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_arenas_are_tried_and_nothing_stays_open() -> None:
    before = {path.name for path in FDS.iterdir()}
    found = {finding.subject: finding for finding in diagnosis.host()}
    assert {path.name for path in FDS.iterdir()} == before
    assert found["shm: memfd"].level == "ok"
    assert found["file descriptors"].data["soft"] >= 0
    assert {"shm: /dev/shm", "core dumps"} <= found.keys()


def test_a_kernel_that_refuses_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(os, "memfd_create", refused)
    found = diagnosis.host()[0]
    assert found.level == "warning"
    assert "no such call" in found.message
    assert found.remedy is not None


@pytest.mark.usefixtures("limits")
def test_few_descriptors_are_a_warning() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    found = {finding.subject: finding for finding in diagnosis.host()}["file descriptors"]
    assert found.level == "warning"
    assert "512" in found.message
    assert found.remedy == "Raise the limit: ulimit -n 4096."
