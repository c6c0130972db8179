"""What one engine is told about drafting: frozen, with units, passed to SGLang's process as JSON."""

from typing import Literal

import msgspec

DRAFT_VARIABLE = "SEER_SGL_DRAFT"
"""Environment variable of the SGLang process that carries `DraftSettings` as JSON."""


class DraftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much an engine drafts, from what, and with whom it shares."""

    mode: Literal["adaptive", "fixed", "off"] = "adaptive"
    """`fixed` drafts `max_nodes` whatever it costs; `off` keeps the worker and drafts nothing."""
    reading: Literal["confidence", "paper", "marginal"] = "confidence"
    """What a draft's benefit is estimated from: the nodes' own confidences, or acceptance per position
    in one of two readings of the paper."""
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Rows of one request in one verify step, the root included. A GPU captures a graph for each."""
    max_nodes: int = 31
    """Draft nodes of one request, the root excluded; less than the largest width."""
    max_depth: int = 16
    budget_bytes: int = 256 << 20
    """Memory for the trees of all groups."""
    servers: tuple[str, ...] = ()
    """ZeroMQ addresses of draft servers; empty keeps the drafts of an engine to itself."""
    engine: str = ""
    """This engine's name among those that share."""
    priority: float = 2.0
    """How much more a probe's accepted token counts than another request's."""
    probe_max: int = 8
    """Draft nodes that a probe gets at least while there is load."""
    profile: str | None = None
    """File with measured step times; None learns them while serving."""

    def __post_init__(self) -> None:
        if list(self.widths) != sorted(set(self.widths)) or self.widths[:1] != (1,):
            raise ValueError(f"widths {self.widths}: expected to rise from 1")
        if not 0 <= self.max_nodes < self.widths[-1]:
            raise ValueError(f"max_nodes {self.max_nodes}: expected 0 to {self.widths[-1] - 1}")
        if self.max_depth < 1:
            raise ValueError(f"max_depth {self.max_depth}: expected at least 1")


def kv_reserve_tokens(settings: DraftSettings) -> int:
    """KV that SGLang allocates for a request beyond its tokens: room for two steps' rows."""
    return 0 if settings.mode == "off" else 2 * (settings.max_nodes + 1)


def encode(settings: DraftSettings) -> str:
    """As it travels in the environment."""
    return msgspec.json.encode(settings).decode()


def decode(text: str) -> DraftSettings:
    """Read what `encode` wrote.

    Raises:
        msgspec.ValidationError: a field is unknown or out of its range.
    """
    return msgspec.json.decode(text, type=DraftSettings)
