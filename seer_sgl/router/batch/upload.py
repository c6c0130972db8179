"""A file on its way from a client to the data folder. Acts."""

import asyncio
import os
import threading

from seer_sgl.errors import RequestError
from seer_sgl.router.batch.store import Folder

GROUP_BYTES = 1 << 20
"""Bytes that are written at once, off the event loop."""


class Upload:
    """Holds a descriptor until `publish` or `discard`.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Folder, file_id: str, limit_bytes: int) -> None:
        self.file_id = file_id
        self.size = 0
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._writing = threading.Lock()
        """A request may be given up while a thread still writes for it."""
        self._group: list[bytes] = []
        self._group_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor: int | None = os.open(folder.upload(file_id), flags, 0o600)

    async def add(self, data: bytes) -> None:
        """Append.

        Raises:
            RequestError: 413, it is too large.
            OSError: it cannot be written.
        """
        self.size += len(data)
        if self.size > self._limit_bytes:
            message = f"is larger than the limit of {self._limit_bytes} bytes"
            raise RequestError("file", message, status=413)
        self._group.append(data)
        self._group_bytes += len(data)
        if self._group_bytes >= GROUP_BYTES:
            await asyncio.to_thread(self._write)

    async def publish(self) -> None:
        """Make it a file of the folder, on the disk for good.

        Raises:
            OSError: it cannot be written.
        """
        await asyncio.to_thread(self._publish)

    def discard(self) -> None:
        """Leave nothing of it, unless it was published."""
        with self._writing:
            self._close()
            self._folder.upload(self.file_id).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> None:
        data = memoryview(b"".join(self._group))
        self._group, self._group_bytes = [], 0
        with self._writing:
            while data and self._descriptor is not None:
                data = data[os.write(self._descriptor, data) :]

    def _publish(self) -> None:
        self._write()
        with self._writing:
            assert self._descriptor is not None
            os.fsync(self._descriptor)
            self._close()
            self._folder.publish(self.file_id)
