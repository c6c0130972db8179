"""`seer-sgl profile`: measures running SGLang servers, for the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seer_sgl.rollout.profile import Profile
    from seer_sgl.sim.fit import Fitted

COMMENTS = {
    "fixed_s": "s of every decoding step",
    "weights_s": "s, least time of a step's matrix products; 0: they grow from the first request on",
    "token_s": "s per request of a step",
    "kv_token_s": "s of a step per cached token",
    "prefill_token_s": "s per prompt token",
    "kv_capacity_tokens": "tokens, as the servers say",
    "page_tokens": "tokens, as the servers say",
    "max_running_requests": "as the servers say",
    "admission": "how SGLang admits requests",
    "prefill_s": "s for which a chunk that starts holds up the others, besides its tokens",
    "prefix_token_s": "s for which it does per token of its prefix that is cached",
    "turnaround_s": "s of a chunk whose prefix is cached, besides that and its steps",
    "move_s": "s that a move from another engine adds",
    "move_token_s": "s that it adds per token",
}
"""What each value of the file is, with its unit."""


def profile(
    url: Annotated[list[str], typer.Argument(help="SGLang servers, loaded all at once.")],
    output: Annotated[Path, typer.Option(help="Where the engine goes, as TOML.")],
    json: Annotated[Path | None, typer.Option(help="Write what was measured here, too.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=2, help="Most requests at once. Default: what the servers run.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer loads and rounds.")] = False,
) -> None:
    """Measure how fast running, idle SGLang servers are, for `seer-sgl sim`. Flushes their caches.

    Where they speculate as SEER, steps with drafts are measured, too: the file of --json then tells an
    engine how much drafting pays.
    """
    import time

    import msgspec

    from seer_sgl.rollout.profile import profile_servers

    from .run import run_until_signal, say

    async def work() -> int:
        measured = await profile_servers(url, max_batch, quick, say)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(as_toml(measured, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())))
        if json is not None:
            json.parent.mkdir(parents=True, exist_ok=True)
            json.write_bytes(msgspec.json.format(msgspec.json.encode(measured)))
        show(measured)
        return 0

    run_until_signal(work(), exact_clock=True)


def as_toml(measured: Profile, when: str) -> str:
    """An `[engine]` table that says where it comes from."""
    fit = measured.fit
    servers = "server" if measured.servers == 1 else "servers at once"
    lines = [
        f"# Measured by `seer-sgl profile` on {when} in {measured.seconds:.0f} s:",
        f"# {measured.model}, SGLang {measured.sglang_version}, {measured.servers} {servers}.",
        f"# Errors of fitted times: median {fit.residual_median:.1%}, worst {fit.residual_worst:.1%}.",
        f"# A lone prompt takes {_number(fit.prefill_fixed_s)} s besides its tokens.",
        *(f"# {note[0].upper()}{note[1:]}." for note in measured.notes),
        "",
        "[engine]",
    ]
    for name, comment in COMMENTS.items():
        value = getattr(fit.engine, name)
        shown = f'"{value}"' if isinstance(value, str) else _number(value)
        lines.append(f"{name} = {shown}  # {comment}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if value else "0.0"


def show(measured: Profile) -> None:
    """Print what was measured beside what the model makes of it."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("what")
    for name in ("requests", "tokens", "measured ms", "fitted ms", "error"):
        table.add_column(name, justify="right")
    for row in measured.fit.fitted:
        table.add_row(*_cells(row))
    console = Console()
    console.print(table)
    for note in measured.notes:
        console.print(note, markup=False)
    if measured.fit.residual_median > 0.1:
        console.print("The fit is poor. Was something else running? Measure again on an idle machine.")


def _cells(row: Fitted) -> list[str]:
    seen = row.observation
    return [
        f"{seen.kind} {seen.rows // seen.requests} wide" if seen.rows else seen.kind,
        f"{seen.requests:,}",
        f"{seen.tokens:,.0f}",
        f"{seen.seconds * 1e3:,.2f}",
        f"{row.fitted_s * 1e3:,.2f}",
        "-" if row.residual is None else f"{row.residual:+.1%}",
    ]
