"""What of the sampling parameters a chunk is sent."""

from typing import Any

import pytest

from seer_sgl.router.sampling import chunk_sampling


@pytest.mark.parametrize(
    ("least", "done", "tokens", "sent"),
    [
        (None, 0, 10, None),
        (0, 0, 10, 0),
        (25, 0, 10, 10),
        (25, 10, 10, 10),
        (25, 20, 10, 5),
        (25, 25, 10, 0),
        (25, 40, 10, 0),
    ],
)
def test_a_chunk_gets_what_is_left_of_the_least_length(
    least: int | None, done: int, tokens: int, sent: int | None
) -> None:
    params: dict[str, Any] = {"top_p": 0.5, "min_new_tokens": least}
    chunk = chunk_sampling(params, tokens, done, {"group": "g"})
    assert chunk["min_new_tokens"] == sent
    assert (chunk["top_p"], chunk["max_new_tokens"]) == (0.5, tokens)
    assert params == {"top_p": 0.5, "min_new_tokens": least}


def test_the_tag_goes_beside_what_the_client_gives() -> None:
    chunk = chunk_sampling({"custom_params": {"a": 1}}, 5, 0, {"group": "g"})
    assert chunk["custom_params"] == {"a": 1, "seer": {"group": "g"}}
    assert chunk_sampling({}, 5, 0, {"group": "g"})["custom_params"] == {"seer": {"group": "g"}}
