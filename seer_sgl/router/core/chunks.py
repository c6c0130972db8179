"""Chunk length by phase of a request, by name: plain functions of the request and the longest chunk.

A short chunk tells sooner how a sample does and reserves less KV; each end of a chunk costs a turn.
"""

from collections.abc import Callable

from seer_sgl.errors import StartError
from seer_sgl.router.core.state import Request

ChunkPlan = Callable[[Request, int], int]
"""(request, longest chunk in tokens) -> tokens that its next chunk may bring, at least 1."""


def constant(_request: Request, chunk_tokens: int) -> int:
    """Always the longest."""
    return chunk_tokens


def short_probe(request: Request, chunk_tokens: int) -> int:
    """A quarter for a probe: it is to tell soon, and never waits long for its next chunk."""
    return max(1, chunk_tokens // 4) if request.is_probe else chunk_tokens


def short_first(request: Request, chunk_tokens: int) -> int:
    """A quarter for the first chunk of every request."""
    return chunk_tokens if request.generated_tokens else max(1, chunk_tokens // 4)


def growing(request: Request, chunk_tokens: int) -> int:
    """A quarter at first, then as long as the output so far."""
    return max(1, min(chunk_tokens, max(chunk_tokens // 4, request.generated_tokens)))


CHUNK_PLANS: dict[str, ChunkPlan] = {
    plan.__name__: plan for plan in (constant, short_probe, short_first, growing)
}


def chunk_plan_named(name: str) -> ChunkPlan:
    """The plan of that name.

    Raises:
        StartError: there is none; the message lists those there are.
    """
    if name not in CHUNK_PLANS:
        raise StartError(f"no chunk plan is called {name!r}; there are: {', '.join(CHUNK_PLANS)}")
    return CHUNK_PLANS[name]
