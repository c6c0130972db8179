"""What a client may ask of a batch."""

from typing import Any

import pytest

from seer_sgl.errors import RequestError
from seer_sgl.router.batch.objects import BatchRequest, ExpiresAfter, new_batch

WRONG_WINDOWS = ("", "0h", "24", "h", "-1h", "1.5h", "24h ", "1w", "٣h", "1٣h", "1234567d")
GOOD: dict[str, Any] = {"endpoint": "/generate", "completion_window": "24h"}


def asked(**changes: Any) -> BatchRequest:
    return BatchRequest(**{"input_file_id": "file-1", **GOOD, **changes})


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", 86_400), ("1s", 1), ("90m", 5400), ("30d", 2_592_000)]
)
def test_windows(window: str, seconds: int) -> None:
    batch = new_batch(asked(completion_window=window), 1000, lambda prefix: f"{prefix}x").batch
    assert (batch.id, batch.expires_at, batch.status) == ("batch_x", 1000 + seconds, "validating")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "/v1/embeddings"),
        ("endpoint", "generate"),
        *(("completion_window", wrong) for wrong in WRONG_WINDOWS),
        ("metadata", {str(n): "" for n in range(17)}),
        ("metadata", {"k" * 65: ""}),
        ("metadata", {"k": "v" * 513}),
    ],
)
def test_what_is_out_of_its_limits(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        new_batch(asked(**{field: value}), 0, str)
    assert caught.value.field == field


def test_limits_of_metadata_themselves_are_fine() -> None:
    most = {f"{n:064}": "v" * 512 for n in range(16)}
    assert new_batch(asked(metadata=most), 0, str).batch.metadata == most


@pytest.mark.parametrize("seconds", [3599, 2_592_001, -1])
def test_lifetime_of_the_output(seconds: int) -> None:
    with pytest.raises(RequestError) as caught:
        new_batch(asked(output_expires_after=ExpiresAfter(seconds)), 0, str)
    assert caught.value.field == "output_expires_after.seconds"
    kept = new_batch(asked(output_expires_after=ExpiresAfter(3600)), 0, str)
    assert kept.output_lifetime_s == 3600
