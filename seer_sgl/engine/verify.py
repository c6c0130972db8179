"""One verify step as arrays: the rows that the model computes, and what is accepted of them.

The *rows* of a request are its root, the last token that is known, and its draft nodes, parents before
children. The model computes all rows of all requests at once, each row attending to the request's KV, to
its own ancestors and to itself. Then the target's own token is sampled at every row, and a request walks
from its root along the nodes that equal the sampled tokens. What it samples where no node matches is one
more token. So the tokens are the target's own, whatever the drafts were.

No SGLang here. A row's number counts over the whole batch.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from seer_sgl.spec.compiled import kernel

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NO_PARENT = -1
PAD = -1


class Rows(NamedTuple):
    """The rows of one verify step. Request `i` owns `starts[i]` to `starts[i + 1]`."""

    starts: IntArray
    tokens: LongArray
    positions: LongArray
    parents: IntArray
    """Row of the parent; `NO_PARENT` for a root and for a row that only fills up."""

    @property
    def widths(self) -> IntArray:
        return np.diff(self.starts)


class Accepted(NamedTuple):
    """What a step yields, padded to the longest request's count."""

    rows: LongArray
    """`[requests, longest]`: rows along the accepted path, the root first, then `PAD`."""
    counts: IntArray
    """Rows of each path; as many tokens are accepted, the one that no draft foresaw included."""


class Nodes(NamedTuple):
    """Drafted nodes of the requests of a step. Request `i` owns `starts[i]` to `starts[i + 1]`."""

    starts: IntArray
    tokens: IntArray
    parents: IntArray
    """Place of the parent among the request's nodes, -1 for a child of the root."""
    depths: IntArray
    """1 for a child of the root."""


def lay_out(nodes: Nodes, roots: IntArray, lengths: LongArray, width: int = 0) -> Rows:
    """Rows for drafts.

    Args:
        nodes: the drafted ones.
        roots: last known token of each request.
        lengths: tokens of each request whose KV is there, the root's not among them.
        width: rows of every request, filled up with rows that nothing can accept; 0 for as many as
            each request has nodes.
    """
    counts = np.diff(nodes.starts) + 1
    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts if width == 0 else np.full(len(counts), width), out=starts[1:])
    rows = Rows(
        starts,
        np.zeros(starts[-1], np.int64),
        np.empty(starts[-1], np.int64),
        np.full(starts[-1], NO_PARENT, np.int32),
    )
    _fill_rows(rows, nodes, roots, lengths)
    return rows


@kernel
def _fill_rows(rows: Rows, nodes: Nodes, roots: IntArray, lengths: LongArray) -> None:
    for request in range(len(roots)):
        root, first = rows.starts[request], nodes.starts[request]
        rows.positions[root : rows.starts[request + 1]] = lengths[request]
        rows.tokens[root] = roots[request]
        for node in range(nodes.starts[request + 1] - first):
            row = root + 1 + node
            rows.tokens[row] = nodes.tokens[first + node]
            rows.positions[row] = lengths[request] + nodes.depths[first + node]
            rows.parents[row] = root + 1 + nodes.parents[first + node]


@kernel
def walk(rows: Rows, sampled: IntArray, longest: int) -> tuple[LongArray, IntArray]:
    """Follow each request's rows while the sampled token is a child's.

    One pass is enough, as children come after their parents. `longest` bounds a path.
    """
    requests = len(rows.starts) - 1
    path = np.full((requests, longest), PAD, np.int64)
    counts = np.ones(requests, np.int32)
    for request in range(requests):
        here = rows.starts[request]
        path[request, 0] = here
        for row in range(here + 1, rows.starts[request + 1]):
            if rows.parents[row] == here and rows.tokens[row] == sampled[here]:
                here = row
                path[request, counts[request]] = row
                counts[request] += 1
    return path, counts


def accept(rows: Rows, sampled: IntArray) -> Accepted:
    """What is accepted where the target sampled these tokens at the rows."""
    longest = int(rows.widths.max())
    path, counts = walk(rows, sampled, longest)
    longest = int(counts.max())
    return Accepted(np.ascontiguousarray(path[:, :longest]), counts)


def accept_on_device(
    tokens: torch.Tensor, parents: torch.Tensor, sampled: torch.Tensor, width: int, deepest: int
) -> "DeviceAccepted":
    """`accept` for `width` rows per request, without telling the host; at most `deepest` rows a path."""
    requests = len(tokens) // width
    firsts = torch.arange(requests, device=tokens.device) * width
    tokens, parents = tokens.view(requests, width), parents.view(requests, width)
    here = firsts
    walking = torch.ones_like(here, dtype=torch.bool)
    path = [here]
    for _ in range(deepest - 1):
        matches = (parents == here[:, None]) & (tokens == sampled[here][:, None])
        walking = walking & matches.any(dim=1)
        here = torch.where(walking, firsts + matches.int().argmax(dim=1), here)
        path.append(torch.where(walking, here, PAD))
    rows = torch.stack(path, dim=1)
    return DeviceAccepted(rows, (rows != PAD).sum(dim=1, dtype=torch.int32))


class DeviceAccepted(NamedTuple):
    """`Accepted`, on a device."""

    rows: torch.Tensor
    counts: torch.Tensor


@kernel
def moves(starts: IntArray, path: LongArray, counts: IntArray) -> tuple[LongArray, LongArray]:
    """(from, to): which rows' KV must move so that each request's path follows its prefix."""
    sources = np.empty(path.size, np.int64)
    targets = np.empty(path.size, np.int64)
    count = 0
    for request in range(len(counts)):
        for place in range(counts[request]):
            if path[request, place] != starts[request] + place:
                sources[count] = path[request, place]
                targets[count] = starts[request] + place
                count += 1
    return sources[:count], targets[:count]


@kernel
def ancestor_mask(starts: IntArray, parents: IntArray, out: BoolArray) -> None:
    """Fill `out[row, place]`: whether a row attends to the row at this place of its request."""
    for request in range(len(starts) - 1):
        start = starts[request]
        for row in range(start, starts[request + 1]):
            out[row, :] = False
            if parents[row] != NO_PARENT:
                out[row, :] = out[parents[row], :]
            elif row != start:
                out[row, 0] = True
            out[row, row - start] = True


@kernel
def gather_slots(table: IntArray, requests: LongArray, firsts: LongArray, starts: IntArray) -> LongArray:
    """KV slots of the rows: of request `i`, those from token `firsts[i]` on."""
    slots = np.empty(starts[-1], np.int64)
    for request in range(len(requests)):
        for row in range(starts[request], starts[request + 1]):
            slots[row] = table[requests[request], firsts[request] + row - starts[request]]
    return slots


@kernel
def sibling_links(starts: IntArray, parents: IntArray) -> tuple[LongArray, LongArray]:
    """(first child, next sibling) of each row, as places in its request, `PAD` where there is none.

    What SGLang's CUDA kernels walk.
    """
    children = np.full(len(parents), PAD, np.int64)
    siblings = np.full(len(parents), PAD, np.int64)
    for request in range(len(starts) - 1):
        start = starts[request]
        for row in range(starts[request + 1] - 1, start, -1):
            parent = parents[row]
            if parent != NO_PARENT:
                siblings[row] = children[parent]
                children[parent] = row - start
    return children, siblings
