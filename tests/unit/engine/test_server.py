"""A server of our own as a process: what it leaves on the disk."""

import asyncio
from pathlib import Path

import pytest

from seer_sgl.config import EngineConfig
from seer_sgl.engine import server
from seer_sgl.engine.server import LaunchedServer
from seer_sgl.errors import ChildFailedError
from tests.unit.engine.test_process import shell


def test_files_that_it_counts_into_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = 'ls "$PROMETHEUS_MULTIPROC_DIR"; echo $$ > "$PROMETHEUS_MULTIPROC_DIR/gauge.db"'
    monkeypatch.setattr(server, "server_argv", lambda *_: shell(counting))
    counts = tmp_path / "e.metrics"
    counts.mkdir()
    (counts / "of_a_killed_one.db").touch()

    async def scenario() -> None:
        launched = LaunchedServer(EngineConfig(name="e", model="/m"), True, tmp_path)
        with pytest.raises(ChildFailedError):
            await launched.start()
        assert [file.name for file in counts.iterdir()] == ["gauge.db"]
        await launched.stop()

    asyncio.run(scenario())
    assert (tmp_path / "e.log").read_text() == "", "it found nothing"
    assert not counts.exists()
