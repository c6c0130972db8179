"""What the tests of the contract share: nothing may crash unseen."""

import logging
from collections.abc import Iterator

import pytest

REFUSED = "WARNING:  Invalid HTTP request received."
"""uvicorn's word on bytes that are no HTTP; it answers them with 400."""


@pytest.fixture(autouse=True)
def _nothing_crashes(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """What a server logs as an error and survives would pass unseen otherwise."""
    yield
    crashes = {_shown(r) for r in caplog.get_records("call") if r.levelno >= logging.ERROR}
    said = [line for line in capsys.readouterr().err.splitlines() if line != REFUSED]
    assert (crashes, said) == (set(), [])


def _shown(record: logging.LogRecord) -> str:
    cause = record.exc_info[1] if record.exc_info else None
    return f"{record.getMessage()} {cause!r}" if cause else record.getMessage()
