"""What the benchmark of weight updates takes for a fault."""

import asyncio
from typing import Any

import pytest

from bench.weight_load import Load, Outcome, Sent, Trainer, faults, run, sure_tokens

VERSIONS = {"1": 0, "2": 1}
REFERENCES = [[[1, 2, 3, 4]], [[5, 6, 7]]]


def answer(ids: list[int], *spans: tuple[str, int], ended: str = "length", rid: str = "r") -> Any:
    edges = [0, *(end for _, end in spans)]
    told = [
        {"version": version, "start": start, "end": end}
        for (version, end), start in zip(spans, edges, strict=False)
    ]
    meta = {
        "id": rid,
        "finish_reason": {"type": ended},
        "completion_tokens": len(ids),
        "output_token_logprobs": [[0.0, token, None] for token in ids],
        "weight_versions": told,
    }
    return {"output_ids": ids, "meta_info": meta}


def found(said: dict[str, Any], tokens: int = 4, status: int = 200) -> str:
    outcome = Outcome("drain", sent=[Sent(0, tokens, status, said)])
    return "; ".join(faults(outcome, VERSIONS, REFERENCES))


@pytest.mark.parametrize(
    "said",
    [
        answer([1, 2, 3, 4], ("1", 4)),
        answer([1, 2], ("1", 2), ended="abort"),
        answer([], ended="abort"),
        answer([1, 2, 9, 9], ("1", 2), ("2", 4)),
        answer([5, 6, 7, 9], ("2", 4)),
    ],
    ids=["whole", "aborted", "aborted at once", "of two weights", "longer than what is sure"],
)
def test_what_is_right(said: dict[str, Any]) -> None:
    assert found(said) == ""


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (answer([1, 2], ("1", 2)), "ended by length with 2 tokens"),
        (answer([1, 2], ("1", 2), ended="stop"), "ended by stop"),
        (answer([1, 2, 3, 4], ("1", 3)), "spans"),
        (answer([1, 2, 3, 4], ("3", 4)), "nobody has named the weights {'3'}"),
        (answer([1, 2, 3, 4], ("2", 4)), "has tokens of other weights"),
        (answer([5, 2, 3, 4], ("1", 1), ("2", 4)), "has tokens of other weights"),
    ],
)
def test_what_is_wrong(said: dict[str, Any], fault: str) -> None:
    assert fault in found(said)


def test_what_is_lost_or_comes_twice() -> None:
    assert "lost: 503" in found({"error": "x"}, status=503)
    twice = [Sent(0, 4, 200, answer([1, 2, 3, 4], ("1", 4)))] * 2
    assert faults(Outcome("drain", sent=twice), VERSIONS, REFERENCES) == ["2 answers to r"]
    told = answer([1, 2, 3, 4], ("1", 4))
    told["meta_info"]["completion_tokens"] = 3
    assert "4 tokens, told as 3" in found(told)


def test_tokens_are_sure_up_to_the_first_close_race() -> None:
    tops: Any = [[[-0.1, 1, None], [-2.0, 9, None]], [[-0.7, 2, None], [-0.705, 9, None]]]
    said: Any = {"output_ids": [1, 2, 3], "meta_info": {"output_top_logprobs": tops}}
    assert sure_tokens(said) == [1]
    said["meta_info"]["output_top_logprobs"] = tops[:1] * 3
    assert sure_tokens(said) == [1, 2, 3]


class Router:
    """A router with one engine that answers at once, and takes every update but the third."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.version = "0"

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        await asyncio.sleep(0.001)
        if path == "/generate":
            ids = REFERENCES[VERSIONS[self.version]][0][: body["sampling_params"]["max_new_tokens"]]
            return 200, answer(ids, (self.version, len(ids)), rid=body["rid"])
        self.calls.append(path)
        if body.get("weight_version") == "3":
            return 400, "no"
        self.version = body.get("weight_version", self.version)
        return 200, {}

    def open(self, *_: Any, **__: Any) -> Any:
        return self

    async def __aenter__(self) -> "Router":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""

    async def read(self) -> bytes:
        return (
            b'{"engines":[{"id":"e","weight_version":"%s","quarantine":null}]}' % self.version.encode()
        )


def test_updates_are_made_while_samples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.weight_load.BETWEEN_S", 0.02)
    router: Any = Router()
    trainer = Trainer(router, ["b", "a"], first_version=1)

    async def scenario() -> Outcome:
        await trainer.update(Outcome("drain"))
        return await run(router, trainer, Load([[7]], 2, [2, 3]), "abort", 2)

    outcome = asyncio.run(scenario())
    pause = ["/pause_generation", "/update_weights_from_disk", "/continue_generation"]
    assert router.calls == ["/update_weights_from_disk", *pause, *pause]
    assert len(outcome.seconds) == len(outcome.waited_s) == 2
    assert len(outcome.sent) > 4
    assert trainer.versions == {"1": 1, "2": 0, "3": 1}
    assert faults(outcome, trainer.versions, REFERENCES[::-1]) == []
    assert outcome.problems == [
        "update 3: /update_weights_from_disk answered 400: no",
        "after update 3: {'e': ('2', None)}",
    ]
