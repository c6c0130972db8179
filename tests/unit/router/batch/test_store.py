"""The store and its folder: one router each, versions, sizes, what a crash leaves behind."""

import asyncio
import errno
import sqlite3
from pathlib import Path

import pytest

from seer_sgl.errors import StartError
from seer_sgl.router.batch.objects import BatchRequest, FileObject, new_batch
from seer_sgl.router.batch.service import BatchService
from seer_sgl.router.batch.store import Folder, Store, is_full, new_id
from tests.unit.router.batch.conftest import desk, line, lines, until
from tests.unit.router.conftest import run


def test_ids_are_in_order_and_differ() -> None:
    ids = [new_id("file-") for _ in range(1000)]
    assert ids == sorted(set(ids))


def test_a_folder_has_one_router(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second = BatchService(tmp_path), BatchService(tmp_path)
        await first.open()
        with pytest.raises(StartError, match="another router"):
            await second.open()
        await second.stop()
        await first.stop()
        await second.open()
        await second.stop()

    run(scenario())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StartError, match="--data-dir"):
        Folder(tmp_path / "taken" / "data")


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_a_database_that_is_not_ours(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        with sqlite3.connect(tmp_path / "store.sqlite3") as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    else:
        (tmp_path / "store.sqlite3").write_bytes(content)

    async def scenario() -> None:
        with pytest.raises(StartError, match=r"version 99|cannot use the store"):
            await BatchService(tmp_path).open()
        Folder(tmp_path).close()  # it was given back

    run(scenario())


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            kept = await it.file(lines(1))
            live = await it.batch(line(0, wait=True))
            await until(lambda: it.answers.asked)
        names = {path.name for path in (tmp_path / "files").iterdir()}
        assert len(names) == 4  # two inputs, output and errors of the batch
        (tmp_path / "files" / "file-0").write_text("no row")
        (tmp_path / "uploads" / "file-1").write_text("half")
        async with desk(tmp_path) as it:
            assert {path.name for path in (tmp_path / "files").iterdir()} == names
            assert not list((tmp_path / "uploads").iterdir())
            assert {kept, live.input_file_id} < names

    run(scenario())


def test_a_failed_transaction_takes_nothing_of_others_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await Store.open(tmp_path / "db")
        file = FileObject(id="file-1", bytes=1, created_at=1, filename="a", purpose="batch")
        await store.add_file(file)
        kept = new_batch(BatchRequest("file-1", "/generate", "1h"), 0, new_id)
        broken = new_batch(BatchRequest("file-1", "/generate", "1h"), 0, new_id)
        broken.batch.id = None  # type: ignore[assignment]
        saved = asyncio.gather(
            store.save_batch(broken, [file]), store.add_batch(kept), return_exceptions=True
        )
        error, added = await saved
        assert isinstance(error, sqlite3.IntegrityError)
        assert added is True
        await store.close()
        store = await Store.open(tmp_path / "db")
        assert await store.batch(kept.batch.id) == kept.batch
        await store.close()

    run(scenario())


def test_a_batch_needs_its_input(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await Store.open(tmp_path / "db")
        kept = new_batch(BatchRequest("file-1", "/generate", "1h"), 0, new_id)
        assert await store.add_batch(kept) is False
        await store.add_file(
            FileObject(id="file-1", bytes=1, created_at=1, filename="a", purpose="batch", expires_at=5)
        )
        assert await store.add_batch(kept) is True
        assert await store.delete_file("file-1") is False
        assert await store.delete_expired(9) == []
        kept.batch.status = "completed"
        await store.save_batch(kept)
        assert await store.live_batches() == []
        assert await store.delete_expired(9) == ["file-1"]
        await store.close()

    run(scenario())


def test_what_counts_as_a_full_disk() -> None:
    assert is_full(OSError(errno.ENOSPC, ""))
    assert is_full(OSError(errno.EDQUOT, ""))
    assert not is_full(OSError(errno.EIO, ""))
    assert not is_full(ValueError())
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE t (b)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    database.close()
    assert is_full(caught.value)
    assert not is_full(sqlite3.IntegrityError())
