"""A router that stops, whatever it was doing: the next one runs the rest, and only that."""

from pathlib import Path

import pytest

from seer_sgl.router.batch.objects import Kept
from seer_sgl.router.batch.store import Store
from tests.unit.router.batch.conftest import desk, line, lines, numbers, until
from tests.unit.router.conftest import run


async def interrupted(folder: Path, count: int) -> tuple[str, list[int]]:
    """A batch whose even lines are done and whose odd ones wait, and a router that stops."""
    async with desk(folder) as it:
        content = b"".join(line(n, **({"wait": True} if n % 2 else {})) for n in range(count))
        batch = await it.batch(content)
        await until(lambda: batch.request_counts.completed == (count + 1) // 2)
        return batch.id, it.answers.asked


def test_a_restart_runs_only_the_rest(tmp_path: Path) -> None:
    async def scenario() -> None:
        batch_id, before = await interrupted(tmp_path, 21)
        assert sorted(before) == list(range(21))
        async with desk(tmp_path) as it:
            it.answers.gate.set()
            batch = await it.ended(await it.service.batch(batch_id))
            output = await it.content(batch.output_file_id)
        assert (batch.status, batch.request_counts.total) == ("completed", 21)
        assert sorted(it.answers.asked) == list(range(1, 21, 2))
        assert numbers(output) == list(range(21))
        assert batch.usage.input_tokens == 63

    run(scenario())


TORN = {
    "in the middle": b'{"id":"batch_req_x_2","custom_id":"c1","resp',
    "never reached the disk": b"\0" * 100,
    "not ours": b'{"id":"what","custom_id":"c1","response":null,"error":null}\n',
}


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
def test_a_torn_line_is_cut(tmp_path: Path, torn: bytes) -> None:
    async def scenario() -> None:
        batch_id, _ = await interrupted(tmp_path, 5)
        outputs = [p for p in (tmp_path / "files").iterdir() if b"batch_req" in p.read_bytes()]
        assert len(outputs) == 1
        with outputs[0].open("ab") as file:
            file.write(torn)
        async with desk(tmp_path) as it:
            it.answers.gate.set()
            batch = await it.ended(await it.service.batch(batch_id))
            assert numbers(await it.content(batch.output_file_id)) == list(range(5))
        assert sorted(it.answers.asked) == [1, 3]

    run(scenario())


def test_a_cancel_survives_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.batch(line(0) + line(1, wait=True))
            await until(lambda: batch.request_counts.completed == 1)
            it.disk.room = 0  # so that it cannot end
            await it.service.cancel(batch.id)
        async with desk(tmp_path) as it:
            after = await it.ended(await it.service.batch(batch.id))
        assert (after.status, it.answers.asked) == ("cancelled", [])

    run(scenario())


def test_lines_that_the_disk_has_lost_are_run_again(tmp_path: Path) -> None:
    """A machine that stops may keep the store's last word, and not the output's."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.batch(lines(9))
            await it.ended(batch)
            output_id = batch.output_file_id or ""
        kept = Kept(batch=batch, output_id=output_id, error_id="file-x")
        batch.status, batch.output_file_id, batch.completed_at = "finalizing", None, None
        path = tmp_path / "files" / output_id
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
        store = await Store.open(tmp_path / "store.sqlite3")
        await store.save_batch(kept)
        await store.close()
        async with desk(tmp_path) as it:
            after = await it.ended(await it.service.batch(batch.id))
            assert numbers(await it.content(after.output_file_id)) == list(range(9))
        assert len(it.answers.asked) == 4

    run(scenario())


def test_a_batch_whose_input_is_gone_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        batch_id, _ = await interrupted(tmp_path, 5)
        async with desk(tmp_path) as it:
            it.answers.gate.set()
            batch = await it.service.batch(batch_id)
            (tmp_path / "files" / batch.input_file_id).unlink()
            await until(lambda: batch.seer.paused)
            assert batch.status == "in_progress"
            assert "FileNotFoundError" in str(batch.seer.paused)

    run(scenario())
    assert "is tried again" in caplog.text
    caplog.clear()


def test_what_is_over_stays_over_when_the_clock_goes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.batch(line(0) + line(1, wait=True), completion_window="30s")
            await until(lambda: batch.request_counts.completed == 1)
            it.disk.room = 0  # so that it cannot end
            it.now_s += 30
            await until(lambda: batch.seer.paused)
        async with desk(tmp_path) as it:
            after = await it.ended(await it.service.batch(batch.id))
        assert (after.status, it.answers.asked) == ("expired", [])

    run(scenario())
