"""Prints what the small model's outputs look like at temperature 1.

python -m seer_sgl.smallmodel.figures [--model DIR] [--json FILE] [--url http://host:port]
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from seer_sgl.smallmodel import WEIGHTS, problems

GROUPS = 64
GROUP_SIZE = 8
PROMPT_SEED = 1
MAX_NEW_TOKENS = 4096
_REQUEST_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Output:
    """One sampled output: its text, length and whether it ended by itself."""

    text: str
    length_tokens: int
    ended: bool


def percentile(values: list[int], share: float) -> float:
    """Return the value at ``share`` (0 to 1) of the sorted list, between neighbours linear."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def intraclass_correlation(groups: list[list[int]]) -> float:
    """Return ICC(1), one-way random effects, of groups of one size."""
    size = len(groups[0])
    between = size * statistics.variance([statistics.fmean(group) for group in groups])
    within = statistics.fmean([statistics.variance(group) for group in groups])
    return (between - within) / (between + (size - 1) * within)


def summarize(prompts: list[str], groups: list[list[Output]]) -> dict[str, float]:
    """Return the figures of one group of outputs per prompt, lengths in tokens."""
    lengths = [[output.length_tokens for output in group] for group in groups]
    flat = [length for group in lengths for length in group]
    rewards = [
        [problems.reward(prompt, output.text) if output.ended else 0.0 for output in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    median = percentile(flat, 0.5)
    return {
        "samples": len(flat),
        "p50_tokens": median,
        "p90_tokens": percentile(flat, 0.9),
        "p99_tokens": percentile(flat, 0.99),
        "max_tokens": max(flat),
        "p99_over_p50": percentile(flat, 0.99) / median,
        "icc_lengths": intraclass_correlation(lengths),
        "ended_share": statistics.fmean(output.ended for group in groups for output in group),
        "mean_reward": statistics.fmean(value for group in rewards for value in group),
        "mixed_group_share": statistics.fmean(len(set(group)) > 1 for group in rewards),
    }


def sample_in_process(directory: Path, texts: list[str]) -> list[Output]:
    """Sample one output per text with the plain torch sampler."""
    import torch
    from tokenizers import Tokenizer

    from seer_sgl.smallmodel import checkpoint, sampler

    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    samples = sampler.sample(checkpoint.load(directory), ids, MAX_NEW_TOKENS)
    return [
        Output(tokenizer.decode(item.ids), len(item.ids) + item.ended, item.ended) for item in samples
    ]


def sample_from_server(url: str, texts: list[str]) -> list[Output]:
    """Sample one output per text with a running server's POST /generate."""
    import httpx

    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": MAX_NEW_TOKENS}
    body = {"text": texts, "sampling_params": sampling}
    reply = httpx.post(f"{url.rstrip('/')}/generate", json=body, timeout=_REQUEST_TIMEOUT_S)
    reply.raise_for_status()
    outputs = []
    for item in reply.json():
        meta = item["meta_info"]
        ended = meta["finish_reason"]["type"] == "stop"
        outputs.append(Output(item["text"], meta["completion_tokens"], ended))
    return outputs


def main() -> None:
    """Sample, then print the figures as a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="model folder")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--url", help="ask this server instead of sampling in-process")
    arguments = parser.parse_args()
    prompts = problems.prompts(GROUPS, PROMPT_SEED)
    texts = [prompt for prompt in prompts for _ in range(GROUP_SIZE)]
    start_s = time.monotonic()
    if arguments.url:
        outputs = sample_from_server(arguments.url, texts)
    else:
        outputs = sample_in_process(arguments.model, texts)
    groups = [outputs[i : i + GROUP_SIZE] for i in range(0, len(outputs), GROUP_SIZE)]
    figures = summarize(prompts, groups) | {"wall_s": time.monotonic() - start_s}
    print("| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.3f} |" if value % 1 else f"| {name} | {value:.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
