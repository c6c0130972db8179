"""What is known of files and batches, in SQLite, and the folder that holds it. Acts.

A file's content lies in the folder under the id that we gave it; no name of a client's is ever a path.
"""

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import msgspec

from seer_sgl.errors import StartError
from seer_sgl.router.batch.objects import LIVE, Batch, FileObject, Kept

VERSION = 1
"""Of the tables below; kept in the database."""
TABLES = """
CREATE TABLE files (
    id TEXT PRIMARY KEY, purpose TEXT NOT NULL, expires_at INTEGER, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE batches (
    id TEXT PRIMARY KEY, live INTEGER NOT NULL, input_id TEXT NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX live_batches ON batches (live, input_id);
"""

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_decode_file = msgspec.msgpack.Decoder(FileObject).decode
_decode_batch = msgspec.msgpack.Decoder(Kept).decode
_count = itertools.count()


def new_id(prefix: str) -> str:
    """Later ids are greater: they order lists, and a page goes on after one that is deleted."""
    return f"{prefix}{time.time_ns():016x}{next(_count) % 65_536:04x}{secrets.token_hex(6)}"


def is_full(error: BaseException) -> bool:
    """Whether something could not be written for want of room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, sqlite3.OperationalError):
        # The log beside the database cannot grow: SQLite says that it is full, or that I/O failed.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    return False


class Folder:
    """The data folder, which one router has for itself.

    Raises:
        StartError: another one has it, or it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "store.sqlite3"
        self._files = root / "files"
        self._uploads = root / "uploads"
        try:
            for folder in (self._files, self._uploads):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StartError(
                f"cannot use the data folder {root}: {error.strerror}. Choose another with --data-dir."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StartError(
                f"another router uses the data folder {root}: give each its own with --data-dir"
            ) from None

    def file(self, file_id: str) -> Path:
        """Where a file's content lies; only for ids that are in the store."""
        return self._files / file_id

    def upload(self, file_id: str) -> Path:
        """Where it lies until it is whole."""
        return self._uploads / file_id

    def publish(self, file_id: str) -> None:
        """Make an upload, already synced, a file for good."""
        self.upload(file_id).rename(self.file(file_id))
        sync_folder(self._files)

    def remove(self, file_id: str) -> None:
        """Nothing happens where it is gone."""
        self.file(file_id).unlink(missing_ok=True)

    def sweep(self, known: Iterable[str]) -> None:
        """Delete what a process left behind that ended without warning."""
        keep = set(known)
        for path in [*self._uploads.iterdir(), *self._files.iterdir()]:
            if path.parent == self._uploads or path.name not in keep:
                path.unlink()

    def sync(self) -> None:
        """The names of all files are on the disk after this."""
        sync_folder(self._files)

    def close(self) -> None:
        """Another router may have it."""
        os.close(self._lock)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Store:
    """Records of files and batches. Everything is durable when its method returns.

    All methods may raise `sqlite3.Error`; `is_full` tells whether it is for want of room.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._database = connection
        self._writing = asyncio.Lock()
        """Held from the start of a transaction to its end: statements of others would be part of it."""

    @classmethod
    async def open(cls, path: Path) -> "Store":
        """Raises StartError where the database is not ours, or of a later version."""
        connection = await aiosqlite.connect(path, isolation_level=None)
        try:
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute("PRAGMA synchronous = FULL")
            version = (await _all(connection, "PRAGMA user_version"))[0][0]
            if version == 0:
                script = f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT"
                await connection.executescript(script)
            elif version != VERSION:
                raise StartError(
                    f"{path} has version {version} of the store, this router knows {VERSION}: "
                    "choose another folder with --data-dir"
                )
        except sqlite3.Error as error:
            await connection.close()
            raise StartError(f"cannot use the store {path}: {error}") from None
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def close(self) -> None:
        await self._database.close()

    # ---- files ----

    async def add_file(self, file: FileObject) -> None:
        await self._change(_ADD_FILE, *_file_row(file))

    async def file(self, file_id: str, now_s: int) -> FileObject | None:
        rows = await self._all(
            "SELECT record FROM files WHERE id = ? AND (expires_at IS NULL OR expires_at > ?)",
            *(file_id, now_s),
        )
        return _decode_file(rows[0][0]) if rows else None

    async def files(
        self, purpose: str | None, after: str, newest_first: bool, limit: int, now_s: int
    ) -> list[FileObject]:
        """So many files that come after an id in the list's order; empty for its start."""
        where = ["(expires_at IS NULL OR expires_at > ?)"]
        values: list[Any] = [now_s]
        if purpose is not None:
            where.append("purpose = ?")
            values.append(purpose)
        if after:
            where.append("id < ?" if newest_first else "id > ?")
            values.append(after)
        order = "DESC" if newest_first else "ASC"
        sql = f"SELECT record FROM files WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT ?"
        return [_decode_file(row[0]) for row in await self._all(sql, *values, limit)]

    async def delete_file(self, file_id: str) -> bool:
        """False where a batch that has not ended needs it, or it is not there."""
        sql = "DELETE FROM files WHERE id = ? AND id NOT IN (SELECT input_id FROM batches WHERE live)"
        return await self._change(sql, file_id) > 0

    async def delete_expired(self, now_s: int) -> list[str]:
        """Ids of files that are over and that no batch needs."""
        sql = "SELECT id FROM files WHERE expires_at <= ?"
        due = [row[0] for row in await self._all(sql, now_s)]
        return [file_id for file_id in due if await self.delete_file(file_id)]

    async def known_files(self) -> list[str]:
        """Ids of everything that may lie in the folder, outputs to come among them."""
        found = [row[0] for row in await self._all("SELECT id FROM files")]
        for kept in await self.live_batches():
            found += [kept.output_id, kept.error_id]
        return found

    # ---- batches ----

    async def add_batch(self, kept: Kept) -> bool:
        """False where its input is not there (any more)."""
        sql = "INSERT INTO batches SELECT ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM files WHERE id = ?)"
        return await self._change(sql, *_batch_row(kept), kept.batch.input_file_id) > 0

    async def save_batch(self, kept: Kept, files: Iterable[FileObject] = ()) -> None:
        """Its new state, together with the files that it has made."""
        database = self._database
        async with self._writing:
            await database.execute("BEGIN IMMEDIATE")
            try:
                for file in files:
                    await database.execute(_ADD_FILE, _file_row(file))
                await database.execute("REPLACE INTO batches VALUES (?, ?, ?, ?)", _batch_row(kept))
                await database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled it back already
                    await database.execute("ROLLBACK")
                raise

    async def batch(self, batch_id: str) -> Batch | None:
        rows = await self._all("SELECT record FROM batches WHERE id = ?", batch_id)
        return _decode_batch(rows[0][0]).batch if rows else None

    async def batches(self, after: str, limit: int) -> list[Batch]:
        """Newest first; after an id, where one is given."""
        where, values = ("WHERE id < ?", [after]) if after else ("", [])
        sql = f"SELECT record FROM batches {where} ORDER BY id DESC LIMIT ?"
        return [_decode_batch(row[0]).batch for row in await self._all(sql, *values, limit)]

    async def live_batches(self) -> list[Kept]:
        """Those that have not ended, oldest first."""
        rows = await self._all("SELECT record FROM batches WHERE live ORDER BY id")
        return [_decode_batch(row[0]) for row in rows]

    async def _all(self, sql: str, *values: Any) -> list[Any]:
        return await _all(self._database, sql, *values)

    async def _change(self, sql: str, *values: Any) -> int:
        async with self._writing, self._database.execute(sql, values) as cursor:
            return cursor.rowcount


_ADD_FILE = "REPLACE INTO files VALUES (?, ?, ?, ?)"


def _file_row(file: FileObject) -> tuple[Any, ...]:
    return file.id, file.purpose, file.expires_at, _encode(file)


def _batch_row(kept: Kept) -> tuple[Any, ...]:
    batch = kept.batch
    return batch.id, batch.status in LIVE, batch.input_file_id, _encode(kept)


async def _all(connection: aiosqlite.Connection, sql: str, *values: Any) -> list[Any]:
    return list(await connection.execute_fetchall(sql, values))
