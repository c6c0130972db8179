"""Drafts that measure: as many nodes as a request asks for, and hardly ever one that is accepted. Pure.

`seer-sgl profile` tags its requests with `FORCED`; the widths are then its own, not the budget's, and
the step is no example to learn from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seer_sgl.spec.acceptance import IntArray
from seer_sgl.spec.forest import Drafts

FORCED = "force"
"""Key of a request's tag: draft tokens of each of its steps, 0 for plain steps."""
FILLER = 0
"""A token that the profile's prompts leave out, and models seldom say."""


def forced_nodes(tag: Any) -> int:
    """What the request asks for; -1 where it leaves it to the budget, or asks for nonsense."""
    nodes = tag.get(FORCED, -1) if isinstance(tag, dict) else -1
    return nodes if isinstance(nodes, int) and nodes >= 0 else -1


def filler(nodes: Sequence[int] | IntArray) -> Drafts:
    """A chain of that many fillers for each request."""
    starts = np.concatenate([[0], np.cumsum(np.asarray(nodes, np.int64))]).astype(np.int32)
    count = int(starts[-1])
    depths = np.arange(count, dtype=np.int32) - np.repeat(starts[:-1], np.diff(starts)) + 1
    tokens = np.full(count, FILLER, np.int32)
    return Drafts(starts, tokens, (depths - 2).astype(np.int32), depths, np.zeros(count, np.float32))
