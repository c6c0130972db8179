"""Reads an input block by block, off the event loop. Acts."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

from seer_sgl.router.batch.lines import Checker, LineTooLong, Numbered, Splitter

BLOCK_BYTES = 1 << 19
LINE_BYTES = 64 << 20
"""Longest line: as long as the body of a request may be."""


async def blocks(path: Path, line_bytes: int = LINE_BYTES) -> AsyncGenerator[list[Numbered], None]:
    """Its lines, some at a time.

    Raises:
        LineTooLong: of the first such line.
        OSError: it cannot be read.
    """
    splitter = Splitter(line_bytes)

    def read() -> tuple[list[Numbered], bool]:
        block = file.read(BLOCK_BYTES)
        return (splitter.feed(block), False) if block else (splitter.end(), True)

    file = _opened(path)
    try:
        ended = False
        while not ended:
            lines, ended = await asyncio.to_thread(read)
            if lines:
                yield lines
    finally:
        file.close()


def _opened(path: Path) -> BinaryIO:
    # Not in a thread: cancelled meanwhile, nobody would close it.
    return path.open("rb")


async def check(path: Path, checker: Checker, line_bytes: int = LINE_BYTES) -> None:
    """Take a whole input through the checker, as far as that can change the result.

    Raises:
        OSError: it cannot be read.
    """

    def take(lines: list[Numbered]) -> None:
        for number, line in lines:
            checker.take(number, line)
            if checker.full:
                return

    source = blocks(path, line_bytes)
    try:
        async for lines in source:
            await asyncio.to_thread(take, lines)
            if checker.full:
                return
        checker.end()
    except LineTooLong as error:
        checker.fail("line_too_long", f"the line is longer than {line_bytes} bytes", error.line)
    finally:
        await source.aclose()
