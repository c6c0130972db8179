"""Kernels work wherever their cache can or cannot be kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from seer_sgl.spec import compiled

USE = """
import logging, shutil, sys
from types import SimpleNamespace
logging.basicConfig()
if sys.argv[1] == "full":
    shutil.disk_usage = lambda folder: SimpleNamespace(free=1000)
from seer_sgl.spec import compiled
import numpy as np
from seer_sgl.spec.automaton import rebuild
rebuild(np.zeros((1, 5), np.int32), np.zeros(16, np.int32), 1)
print(len(compiled.cache_failures))
"""


def twice(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize(("disk", "fails"), [("roomy", False), ("full", True)])
def test_a_full_disk_costs_time_and_nothing_else(tmp_path: Path, disk: str, fails: bool) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", USE, disk],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(ran.stdout) > 0) == fails
    assert ran.stderr.count("compiled anew in every process") == fails
    assert any(tmp_path.rglob("*.nbi")) != fails


def test_no_folder_to_write_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_folder: Path) -> None:
        raise OSError("there is no folder")

    monkeypatch.setattr(compiled, "_prepare", refuse)
    monkeypatch.setattr(compiled, "cache_failures", [])
    doubled = [compiled.kernel(twice) for _ in range(2)]
    assert [double(21) for double in doubled] == [42, 42]
    assert len(compiled.cache_failures) == 2
    assert caplog.text.count("set NUMBA_CACHE_DIR") == 1


def test_kernels_older_than_a_source_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1 << 40))
    old, new = tmp_path / "old.nbi", tmp_path / "new.nbi"
    for index in (old, new):
        index.touch()
    os.utime(old, (0, 0))
    compiled._prepare.__wrapped__(tmp_path)
    assert not old.exists()
    assert new.exists()
