"""The target's token at every row of a verify step, and seeds on the CPU platform.

`sample_rows` gives SGLang's own sampler one line of parameters per row. The rest is seeded sampling on
the CPU platform, as SGLang's own deterministic sampling does it.

SGLang 0.5.23 honours `sampling_seed` under `--enable-deterministic-inference` only, which does not start
on a CPU, and hashes with a Triton kernel. The math is the same here: murmur3 over (seed, position,
candidate) gives a uniform number, that one Gumbel noise, and the candidate with the highest logprob
plus noise is taken. A token is a function of seed, position and distribution alone, so neither chunks,
nor batches, nor speculation change a seeded request's answer. A request without a seed stays random.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from seer_sgl.engine.verify import LongArray, Rows
from seer_sgl.spec.compiled import kernel

UNSEEDED = -(2**63)
"""Marks a request without a seed; a request that asks for this very seed gets the next one."""

ROW_FIELDS = ("temperatures", "top_ps", "top_ks", "min_ps", "sampling_seed")
"""Per request in SGLang's sampling info; the sampler wants them per row."""


def sample_rows(sampler: Any, info: Any, output: Any, rows: Rows) -> torch.Tensor:
    """The target's own token at every row, by SGLang's sampler.

    Penalties and biases are added to the logits of `output`, as in plain decoding: logprobs are
    computed from these afterwards.
    """
    logits = output.next_token_logits
    owners = torch.from_numpy(np.repeat(np.arange(len(rows.widths)), rows.widths)).to(logits.device)
    if info.acc_additive_penalties is not None:
        logits.add_(info.acc_additive_penalties[owners])
    if info.acc_scaling_penalties is not None:
        scaling = info.acc_scaling_penalties[owners]
        logits.copy_(torch.where(logits < 0, logits * scaling, logits / scaling))
    if info.logit_bias is not None:
        logits.add_(info.logit_bias[owners])
    if info.is_all_greedy:
        return logits.argmax(dim=-1).to(torch.int32)
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput

    per_row = copy.copy(info)
    for field in ROW_FIELDS:
        value = getattr(info, field)
        setattr(per_row, field, None if value is None else value[owners])
    # The sampler works in place.
    rowwise = LogitsProcessorOutput(next_token_logits=logits.clone())
    positions = torch.from_numpy(rows.positions).to(logits.device)
    return sampler(rowwise, per_row, False, [], [], positions).to(torch.int32)


def note_seeds(info: Any, _cls: type, batch: Any, *_rest: Any, **_named: Any) -> Any:
    """Hook after `SamplingBatchInfo.from_schedule_batch`: one seed per request, or `UNSEEDED`."""
    seeds = (request.sampling_params.sampling_seed for request in batch.reqs)
    info.sampling_seed = torch.tensor(
        [UNSEEDED if seed is None else max(seed, UNSEEDED + 1) for seed in seeds], dtype=torch.int64
    )
    return info


def sample_probs(
    original: Callable[..., torch.Tensor],
    probs: torch.Tensor,
    sampling_seed: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hook around `sampling_from_probs_torch`: no top-k, top-p or min-p."""
    seeded = _seeded_rows(sampling_seed)
    if seeded is None:
        return original(probs)
    assert sampling_seed is not None
    assert positions is not None
    picked = pick(torch.log(probs), sampling_seed, positions).view(-1).to(torch.int32)
    return picked if seeded.all() else torch.where(seeded, picked, original(probs))


def sample_filtered(original: Callable[..., Any], probs: torch.Tensor, *given: Any, **asked: Any) -> Any:
    """Hook around `top_k_top_p_min_p_sampling_from_probs_torch`."""
    *filters, sampling_seed, positions = given
    top_ks, top_ps, min_ps, need_min_p = filters
    seeded = _seeded_rows(sampling_seed)
    if seeded is None:
        return original(probs, *filters, None, positions, **asked)
    weights, ids = probs.sort(dim=-1, descending=True)
    before = weights.cumsum(dim=-1) - weights
    ranks = torch.arange(weights.shape[1])
    weights[ranks.view(1, -1) >= top_ks.view(-1, 1)] = 0.0
    weights[before > top_ps.view(-1, 1)] = 0.0
    if need_min_p:
        weights[weights < (weights[:, 0] * min_ps).view(-1, 1)] = 0.0
    place = pick(weights.double().log_(), sampling_seed, positions)
    if not seeded.all():
        place = torch.where(seeded.view(-1, 1), place, torch.multinomial(weights, num_samples=1))
    ids = ids.to(torch.int32)
    tokens = ids.gather(1, place).view(-1)
    if asked.get("return_filtered_probs"):
        return tokens, weights, ids, weights.gather(1, place).view(-1)
    return tokens


def _seeded_rows(seeds: torch.Tensor | None) -> torch.Tensor | None:
    """Which rows have a seed; None if none has."""
    if seeds is None:
        return None
    seeded = seeds != UNSEEDED
    return seeded if bool(seeded.any()) else None


def pick(logprobs: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Column of each row's sample, `[rows, 1]`: replaces SGLang's `multinomial_with_seed`."""
    noise = np.empty(logprobs.shape, np.float64)
    _uniform(seeds.numpy(), positions.to(torch.int64).numpy(), noise)
    scores = torch.from_numpy(noise)
    # The top is cut at the hash's spacing, so that 1.0 is no infinite noise.
    scores.log_().clamp_(min=torch.finfo(scores.dtype).min, max=-(2.0**-32)).neg_()
    scores.log_().neg_().add_(logprobs)
    return scores.argmax(dim=1, keepdim=True)


@kernel
def _uniform(seeds: LongArray, positions: LongArray, out: Any) -> None:
    """murmur3-32 of (seed low, seed high, position, column), over its largest value."""
    low32 = np.uint64(0xFFFFFFFF)
    for row in range(len(seeds)):
        seed = np.uint64(seeds[row])
        start = np.uint64(0)
        for part in (seed & low32, seed >> np.uint64(32), np.uint64(positions[row]) & low32):
            start = _mix(start, part)
        for column in range(out.shape[1]):
            value = _mix(start, np.uint64(column)) ^ np.uint64(16)
            value ^= value >> np.uint64(16)
            value = (value * np.uint64(0x85EBCA6B)) & low32
            value ^= value >> np.uint64(13)
            value = (value * np.uint64(0xC2B2AE35)) & low32
            value ^= value >> np.uint64(16)
            out[row, column] = np.float64(value) / 4294967295.0


@kernel
def _mix(state: Any, part: Any) -> Any:
    low32 = np.uint64(0xFFFFFFFF)
    part = (part * np.uint64(0xCC9E2D51)) & low32
    part = ((part << np.uint64(15)) | (part >> np.uint64(17))) & low32
    part = (part * np.uint64(0x1B873593)) & low32
    state ^= part
    state = ((state << np.uint64(13)) | (state >> np.uint64(19))) & low32
    return (state * np.uint64(5) + np.uint64(0xE6546B64)) & low32
