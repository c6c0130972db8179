"""Requests without a pause, and weight updates among them: who was lost, and whose tokens are whose."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seer_sgl.engine.sglang import SGLangClient, decoded

WAYS = ("drain", "abort", "retract")
"""How a trainer may update: at once, so that requests end before; or paused, in one of two modes."""
BETWEEN_S = 0.3
"""Load alone, before each update."""
SURE = 0.01
"""Log-probability that the best token has to be ahead by; rounding moves it by less than 1e-3."""


@dataclass(frozen=True)
class Load:
    """So many groups of so many samples each run at any time.

    Args:
        prompts: token ids, one prompt for each group.
        lengths: tokens of answers; a sample takes one after the other.
    """

    prompts: Sequence[Sequence[int]]
    samples: int
    lengths: Sequence[int]


@dataclass(frozen=True)
class Sent:
    """One request and what came back."""

    group: int
    tokens: int
    status: int
    answer: dict[str, Any]


@dataclass
class Outcome:
    """What a run of updates under load has shown."""

    way: str
    sent: list[Sent] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each update, from the trainer's first call to the answer of its last."""
    waited_s: list[float] = field(default_factory=list)
    """Of that, until the update itself was sent."""
    problems: list[str] = field(default_factory=list)
    """What went wrong with updates, in words; and see `faults`."""


class Trainer:
    """Updates the engines of one router.

    Args:
        folders: checkpoints to take in turn.
        first_version: of the first update; each further one is higher by one.
    """

    def __init__(self, client: SGLangClient, folders: Sequence[str], first_version: int = 1) -> None:
        self._client = client
        self._folders = folders
        self.version = first_version - 1
        self.versions: dict[str, int] = {}
        """Which folder's weights each version is."""

    async def update(self, outcome: Outcome) -> None:
        """One update, and what is wrong with the engines after it."""
        self.version += 1
        place = self.version % len(self._folders)
        self.versions[str(self.version)] = place
        body = {"model_path": self._folders[place], "weight_version": str(self.version)}
        began_s = time.perf_counter()
        if outcome.way != "drain":
            await self._told(outcome, "/pause_generation", {"mode": outcome.way})
        outcome.waited_s.append(time.perf_counter() - began_s)
        await self._told(outcome, "/update_weights_from_disk", body)
        if outcome.way != "drain":
            await self._told(outcome, "/continue_generation", {})
        outcome.seconds.append(time.perf_counter() - began_s)
        async with self._client.open("GET", "/engines", timeout_s=30.0) as answer:
            engines = decoded(await answer.read())["engines"]
        state = {e["id"]: (e["weight_version"], e["quarantine"]) for e in engines}
        if set(state.values()) != {(str(self.version), None)}:
            outcome.problems.append(f"after update {self.version}: {state}")

    async def _told(self, outcome: Outcome, path: str, body: dict[str, Any]) -> None:
        status, answer = await self._client.post(path, body)
        if status != 200:
            outcome.problems.append(f"update {self.version}: {path} answered {status}: {answer}")


async def run(client: SGLangClient, trainer: Trainer, load: Load, way: str, updates: int) -> Outcome:
    """So many updates while the load runs; then every sample ends its last request."""
    outcome = Outcome(way)
    over = asyncio.Event()
    samples = [
        asyncio.create_task(_sample(client, load, group, sample, over, outcome))
        for group in range(len(load.prompts))
        for sample in range(load.samples)
    ]
    try:
        for _ in range(updates):
            await asyncio.sleep(BETWEEN_S)
            await trainer.update(outcome)
        over.set()
        await asyncio.gather(*samples)
    finally:
        for task in samples:
            task.cancel()
        await asyncio.gather(*samples, return_exceptions=True)
    return outcome


async def _sample(
    client: SGLangClient, load: Load, group: int, sample: int, over: asyncio.Event, outcome: Outcome
) -> None:
    turn = sample
    while not over.is_set():
        tokens = load.lengths[turn % len(load.lengths)]
        turn += 1
        body = {
            "input_ids": list(load.prompts[group]),
            "rid": f"{outcome.way}-{group}-{sample}-{turn}",
            "sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True},
            "return_logprob": True,
        }
        status, answer = await client.post("/generate", body)
        said = answer if isinstance(answer, dict) else {"said": answer}
        outcome.sent.append(Sent(group, tokens, status, said))


def sure_tokens(answer: dict[str, Any]) -> list[int]:
    """Tokens of a greedy answer up to the first that a rounding error could have changed.

    Args:
        answer: with `top_logprobs_num` 2.
    """
    ids: list[int] = answer["output_ids"]
    tops = answer["meta_info"]["output_top_logprobs"]
    margins = [best[0] - second[0] for best, second in tops]
    return ids[: next((at for at, margin in enumerate(margins) if margin < SURE), len(ids))]


def faults(
    outcome: Outcome, versions: Mapping[str, int], references: Sequence[Sequence[Sequence[int]]]
) -> list[str]:
    """What is wrong with answers: lost, doubled, cut, or of other weights than they say.

    Args:
        versions: the weights of each, by their place among the references.
        references: by weights and group, the tokens that are sure.
    """
    ids = Counter(each.answer.get("meta_info", {}).get("id") for each in outcome.sent)
    found = [f"{count} answers to {rid}" for rid, count in ids.items() if count > 1]
    for each in outcome.sent:
        if reason := _fault(each, versions, [whole[each.group] for whole in references]):
            found.append(f"group {each.group}, {each.tokens} tokens: {reason}")
    return found


def _fault(sent: Sent, versions: Mapping[str, int], references: Sequence[Sequence[int]]) -> str:
    if sent.status != 200:
        return f"lost: {sent.status} {str(sent.answer)[:300]}"
    ids, meta = sent.answer["output_ids"], sent.answer["meta_info"]
    ended = meta["finish_reason"]["type"]
    if ended not in ("length", "abort") or (ended == "length" and len(ids) != sent.tokens):
        return f"ended by {ended} with {len(ids)} tokens"
    if meta["completion_tokens"] != len(ids) or len(meta["output_token_logprobs"]) != len(ids):
        return f"{len(ids)} tokens, told as {meta['completion_tokens']}"
    return _span_fault(ids, meta["weight_versions"], versions, references) if ids else ""


def _span_fault(
    ids: Sequence[int],
    spans: Sequence[Mapping[str, Any]],
    versions: Mapping[str, int],
    references: Sequence[Sequence[int]],
) -> str:
    edges = [0, *(span["end"] for span in spans)]
    if [span["start"] for span in spans] != edges[:-1] or edges[-1] != len(ids):
        return f"spans {spans} of {len(ids)} tokens"
    if unknown := {span["version"] for span in spans} - set(versions):
        return f"nobody has named the weights {unknown}"
    expected = references[versions[spans[0]["version"]]]
    length = min(spans[0]["end"], len(expected))
    same = list(ids[:length]) == list(expected[:length])
    return "" if same else f"the first span of {spans} has tokens of other weights"
