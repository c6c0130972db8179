"""Sums of the KV benchmark, against sums done by hand."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from bench.kv import LARGE, _store_row, predicted
from bench.kv_footprint import Footprint, footprint_of, metric, sampled, until_empty, watched_pool
from bench.kv_probe import figures_of as probe_figures
from bench.kv_probe import share_found
from bench.kv_rollouts import Run, Way, figures_of, row_of
from bench.kv_servers import Said, findable
from bench.kv_store import Moved
from seer_sgl.engine.process import free_port
from seer_sgl.rollout.client import SampleResult
from seer_sgl.rollout.report import Report, report_on


@pytest.mark.parametrize(("tokens", "whole"), [(1, 0), (16, 0), (17, 16), (512, 496), (513, 512)])
def test_the_last_token_is_always_computed(tokens: int, whole: int) -> None:
    assert findable(tokens) == whole


def test_share_found() -> None:
    said = [Said([7], 0.1, cached, 0, 0.0) for cached in (496, 0, 248)]
    assert share_found(said, 512) == 0.5


# ---- what is predicted ----


def test_a_prefill_is_products_links_and_attention() -> None:
    large, tokens = predicted(), 16_384
    flop_per_s = 8 * 989e12 * large.hardware.efficiency
    link = 4.59e6 / (200e9 * large.hardware.efficiency)
    products_s = tokens * (2 * 72.7e9 / flop_per_s + link)
    attention_s = 2 * 80 * 8192 * tokens**2 / flop_per_s
    assert large.compute_s(tokens) == pytest.approx(products_s + attention_s)
    assert large.shape.kv_bytes_per_token == LARGE.token_bytes


def test_a_move_is_its_latency_and_its_bytes() -> None:
    large = predicted()
    assert large.move_s(10_000) == pytest.approx(large.hardware.move_s + 10_000 * 327_680 / 400e9)


def test_a_row_of_the_store_shows_the_middle_run_and_all_that_went_wrong() -> None:
    moved = [
        Moved(1024, 1_000_000_000, put_s=1.0, get_s=get_s, parts=2, wrong=wrong)
        for get_s, wrong in ((4.0, 0), (2.0, 1), (1.0, 2))
    ]
    row = _store_row(moved, predicted())
    assert (row["get_gb_per_s"], row["put_gb_per_s"], row["wrong_objects"]) == (0.5, 1.0, 3)


# ---- what the pool holds ----


def test_each_sample_holds_until_the_next() -> None:
    held = footprint_of([(10.0, 100.0), (11.0, 300.0), (14.0, 0.0)])
    assert held == Footprint(mean_bytes=(100 * 1 + 300 * 3) / 4, peak_bytes=300.0, end_bytes=0.0)
    with pytest.raises(ValueError, match="two samples"):
        footprint_of([(1.0, 2.0)])


def test_a_metric_is_found_by_its_whole_name() -> None:
    text = "# TYPE held gauge\nheld_more 9\nheld 12.5\n"
    assert metric(text, "held") == 12.5
    with pytest.raises(LookupError, match="tells no missing"):
        metric(text, "missing")


def test_samples_are_taken_from_beginning_to_end() -> None:
    async def scenario() -> list[tuple[float, int]]:
        values = iter(range(1000))
        async with sampled(lambda: next(values), 0.005) as samples:
            await asyncio.sleep(0.05)
        return samples

    samples = asyncio.run(scenario())
    assert len(samples) > 2
    assert [value for _, value in samples] == list(range(len(samples)))
    assert [at_s for at_s, _ in samples] == sorted(at_s for at_s, _ in samples)


def test_the_pool_is_watched_over_http() -> None:
    async def scenario() -> tuple[list[float], float, float]:
        told = iter([5.0, 7.0, 7.0, 7.0, 0.0])

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(text=f"master_allocated_bytes {next(told, 3.0)}\n")

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        url = f"http://127.0.0.1:{port}"
        try:
            async with watched_pool(url, every_s=60.0) as samples:
                pass
            left = await until_empty(url, patience_s=10.0)
            kept = await until_empty(url, patience_s=0.0)
        finally:
            await runner.cleanup()
        return [value for _, value in samples], left, kept

    assert asyncio.run(scenario()) == ([5.0, 7.0], 0.0, 3.0)


# ---- rollouts ----


def report(found: float | None = 1.0, pool_wait_s: float = 0.0, seconds: float = 10.0) -> Report:
    empty = report_on([SampleResult("g", 0, 200, seconds)], page_tokens=16)
    fields: dict[str, Any] = {name: getattr(empty, name) for name in Report.__struct_fields__}
    return Report(**{**fields, "prefix_found_share": found, "pool_wait_s": pool_wait_s})


def ran(report: Report, footprint: Footprint | None, move_wait_s: float = 0.0) -> Run:
    return Run(Way("w"), report, footprint, running_s=100.0, move_wait_s=move_wait_s)


def test_time_for_kv_is_waiting_on_engines_and_before_moves() -> None:
    assert ran(report(pool_wait_s=4.0), None, move_wait_s=25.0).kv_time_share == (4 + 25) / 125


def test_figures_of_rollouts() -> None:
    held = [Footprint(2e6, 6e6, 0.0), Footprint(8e6, 12e6, 12e6), Footprint(1e6, 1e6, 0.0)]
    runs = [
        ran(report(found=0.9, pool_wait_s=1.0), held[0]),
        ran(report(), held[1]),
        ran(report(found=0.8, pool_wait_s=10.0, seconds=10.0), held[2]),
        ran(report(found=0.1, seconds=15.0), None),
    ]
    assert figures_of(runs) == {
        "prefix_found_share": 0.9,
        "prefix_found_share_every_move": 0.8,
        "footprint_x": 0.25,
        "footprint_peak_x": 0.5,
        "kv_time_share": 0.01,
        "kv_time_share_every_move": 0.1,
        "no_pool_x": 1.5,
    }
    rows = [row_of(run) for run in runs]
    assert (rows[1]["pool_mean_mb"], rows[1]["pool_peak_mb"]) == (8.0, 12.0)
    assert rows[3]["pool_mean_mb"] is None


def test_rollouts_in_which_nothing_moved_tell_nothing_of_what_was_found() -> None:
    held = Footprint(1.0, 1.0, 1.0)
    runs = [ran(report(found=None), held), *[ran(report(), held)] * 2, ran(report(), None)]
    figures = figures_of(runs)
    assert "prefix_found_share" not in figures
    assert figures["prefix_found_share_every_move"] == 1.0


def test_figures_of_probes_are_those_right_after_the_chunk() -> None:
    rows: list[dict[str, Any]] = [
        {"servers": servers, "after_ms": after_ms, "found_share": share}
        for servers, after_ms, share in (("quiet", 0, 0.9), ("quiet", 10, 1.0), ("loaded", 0, 0.7))
    ]
    assert probe_figures([{"tokens": 512, "found_share": 0.2}, *rows]) == {
        "found_at_once_share": 0.9,
        "found_at_once_share_loaded": 0.7,
    }
