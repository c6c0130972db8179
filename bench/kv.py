"""What KV costs that moves between engines, and what the pool holds: each beside computing it again.

    python -m bench.kv --json out.json [--quick]

Four parts. (1) Prefixes of a 70B model's size (Qwen2-72B: 327,680 bytes a token, pages of 64 tokens, for
each of 8 devices an object of keys and one of values) from one Mooncake client to another over TCP on
this machine. Long ones go through a window of 1 GiB: put, got, checked and removed part by part. Beside
it what is predicted, not measured, for 8 H800 as `seer_sgl/sim/workloads/qwen2-vl-72b.toml` has them:

    compute_s = tokens * (2 * parameters / flops + reduced bytes / link)
                + 2 * layers * width * tokens**2 / flops
    move_s    = latency + tokens * bytes per token / migration bytes per s

Then the calls of the pool's keeper. (2) Two real servers of the small model: prefixes loaded and
computed; and what is found elsewhere so long after a chunk has ended, while the servers are idle and
while they are busy. (3) Rollouts of the small model through a router over these servers. (4) Prompts
before and after weights were changed.

Figures:

- `migrate_gb_per_s`, `put_gb_per_s`: reading and writing a prefix of 32K tokens (16K with `--quick`), in
  10**9 bytes; reading crosses from one process to the other, writing fills the writer's own segment;
- `break_even_gb_per_s`: above it moving the 70B model's KV is predicted to beat computing 32K tokens;
- `prefix_found_share`: what moved chunks of the rollout under `seer` found of the whole pages that they
  could find; `prefix_found_share_every_move`: where every chunk moves;
- `found_at_once_share`, `found_at_once_share_loaded`: of part (2), 0 ms after the chunk's end;
- `stale_prefix_tokens`: KV of old weights that prompts found after updates, which is 0;
  `stale_prefix_tokens_unsalted`: the same with salts switched off, to show that it would be found;
- `footprint_x`, `footprint_peak_x`: bytes in the pool over a rollout with eager release, mean over time
  and peak, over those of the same rollout without;
- `kv_time_share`: of the time that requests are on engines or wait for KV, what they wait for KV: on
  engines for the pool, and in the router before they move; `kv_time_share_every_move` likewise;
- `no_pool_x`: seconds of the rollout where every chunk moves, on servers without a pool, over those with
  it: what computing again costs here, where a prefill is short.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench import kv_probe, kv_rollouts
from bench.kv_client import measure_client
from bench.kv_rollouts import APART, WAYS, Rollouts, Run, row_of
from bench.kv_servers import running_servers, running_servers_apart
from bench.kv_store import Layout, Moved, running_store
from bench.report import Report, Row, finish
from seer_sgl.sim.files import WORKLOADS
from seer_sgl.sim.hardware import Hardware, ModelShape, engine_model
from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel.checkpoint import load, save

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUICK_LENGTHS = (1024, 4096, 16384)
SHOWN_TOKENS = 32768
REPEATED_TOKENS = 4096
"""Up to here a prefix is moved three times; longer ones are many windows as they are."""
WINDOW_BYTES = 1 << 30
LARGE = Layout(token_bytes=327_680, page_tokens=64, ranks=8)
WINDOW_TOKENS = WINDOW_BYTES // LARGE.token_bytes
LARGE_WIDTH = 8192
"""Query heads times their size."""
KV_TOKENS = 8192
"""Of each server in rollouts: too little for all requests at once."""
MAX_RUNNING = 16


class Predicted(msgspec.Struct, frozen=True):
    """A large model on large hardware, by formula."""

    shape: ModelShape
    hardware: Hardware

    def compute_s(self, tokens: int) -> float:
        """A prefill: products of every token, and attention of each to all before it."""
        engine, hardware = engine_model(self.shape, self.hardware), self.hardware
        flop_per_s = hardware.devices * hardware.flop_per_s * hardware.efficiency
        attention_s = 2 * self.shape.layers * LARGE_WIDTH * tokens**2 / flop_per_s
        return tokens * engine.prefill_token_s + attention_s

    def move_s(self, tokens: int) -> float:
        """From another engine's memory, at what the network is rated."""
        engine = engine_model(self.shape, self.hardware)
        return engine.move_s + tokens * engine.move_token_s


def predicted(workload: str = "qwen2-vl-72b") -> Predicted:
    """The 70B model of the Seer paper on its hardware."""
    tables = tomllib.loads((WORKLOADS / f"{workload}.toml").read_text(encoding="utf-8"))
    shape = msgspec.convert(tables["model"], ModelShape)
    return Predicted(shape, msgspec.convert(tables["hardware"], Hardware))


def measure_store(quick: bool, scratch: Path) -> tuple[list[Row], dict[str, float]]:
    """Prefixes of a large model through the store."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    runs: dict[int, list[Moved]] = {}
    with running_store(WINDOW_BYTES, scratch / "store") as store:
        store.move(
            WINDOW_BYTES // LARGE.token_bytes, LARGE, "warm"
        )  # the first touch of a segment is slow
        for tokens in lengths:
            repeats = 3 if tokens <= REPEATED_TOKENS else 1
            runs[tokens] = [store.move(tokens, LARGE, f"{tokens}-{n}") for n in range(repeats)]
            _say(f"{tokens} tokens: {runs[tokens][-1].get_s:.2f} s to read")
    large = predicted()
    costs = measure_client(scratch)
    rows = [_store_row(moved, large) for moved in runs.values()]
    shown = max(tokens for tokens in lengths if tokens <= SHOWN_TOKENS)
    row: Any = rows[lengths.index(shown)]
    return rows + costs, {
        "migrate_gb_per_s": row["get_gb_per_s"],
        "put_gb_per_s": row["put_gb_per_s"],
        "break_even_gb_per_s": SHOWN_TOKENS * LARGE.token_bytes / large.compute_s(SHOWN_TOKENS) / 1e9,
    }


def _store_row(moved: list[Moved], large: Predicted) -> Row:
    tokens, sent = moved[0].tokens, moved[0].bytes
    put_s = statistics.median(each.put_s for each in moved)
    get_s = statistics.median(each.get_s for each in moved)
    return {
        "table": "a 70B model's prefix from one store client to another",
        "tokens": tokens,
        "gb": sent / 1e9,
        "windows": moved[0].parts,
        "put_s": put_s,
        "get_s": get_s,
        "put_gb_per_s": sent / put_s / 1e9,
        "get_gb_per_s": sent / get_s / 1e9,
        "wrong_objects": sum(each.wrong for each in moved),
        "predicted_move_s": large.move_s(tokens),
        "predicted_compute_s": large.compute_s(tokens),
    }


async def measure_servers(quick: bool, scratch: Path) -> tuple[list[Row], dict[str, float]]:
    """What needs the small model's servers."""
    other = perturbed(scratch / "other")
    size = kv_rollouts.QUICK if quick else kv_rollouts.FULL
    runs = []
    async with running_servers(scratch / "pool", KV_TOKENS, MAX_RUNNING) as servers:
        rows = await kv_probe.Prober(servers).measure(kv_probe.QUICK if quick else kv_probe.FULL)
        figures = kv_probe.figures_of(rows)
        _say(f"found at once: {figures}")
        rollouts = Rollouts(servers, size)
        for name, salted in (("stale_prefix_tokens", True), ("stale_prefix_tokens_unsalted", False)):
            figures[name] = await rollouts.stale([other, WEIGHTS], salted)
            _say(f"{name}: {figures[name]}")
        for way in WAYS:
            runs.append(_told(await rollouts.run(way)))
    async with running_servers_apart(scratch / "apart", KV_TOKENS, MAX_RUNNING) as servers:
        runs.append(_told(await Rollouts(servers, size).run(APART)))
    return rows + [row_of(run) for run in runs], figures | kv_rollouts.figures_of(runs)


def _told(run: Run) -> Run:
    found = run.report.prefix_found_share
    _say(f"{run.way.name}: {run.report.seconds:.1f} s, {run.report.moved_chunks} moved, found {found}")
    return run


def perturbed(folder: Path) -> Path:
    """A checkpoint of the same kind with slightly other weights."""
    model = load(WEIGHTS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator) * 0.02 * weights.std())
    save(model, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="What KV costs that moves, and what the pool holds.")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--quick", action="store_true", help="fewer lengths, samples and groups")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, figures = measure_store(args.quick, Path(folder))
        more, further = asyncio.run(measure_servers(args.quick, Path(folder)))
    finish(Report("bench.kv", rows + more, figures | further), args.json)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
