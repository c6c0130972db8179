"""How this package's kernels are compiled: kept on disk where that can be written to."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

cache_failures: list[str] = []
"""Why the kernels of this process are compiled in memory alone; empty where the disk cache works."""


def _forget_stale(package: Path) -> None:
    """Remove compiled kernels older than any source here.

    Numba compares a kernel with its own file alone, and kernels here call those of other files.
    """
    newest_s = max(source.stat().st_mtime for source in package.glob("*.py"))
    for index in package.glob("__pycache__/*.nbi"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            if index.stat().st_mtime < newest_s:
                index.unlink()


_forget_stale(Path(__file__).parent)


def kernel(function: F) -> F:
    """Compile on first use, without the GIL, kept on disk for the next process.

    A cache folder that cannot be written costs seconds at each start, no more: it is logged once.
    """
    try:
        return _jit(function, cache=True)
    except RuntimeError as error:  # numba found no folder that it may write to
        if not cache_failures:
            log.warning("kernels are compiled anew in every process: %s; set NUMBA_CACHE_DIR", error)
        cache_failures.append(str(error))
        return _jit(function, cache=False)


def inlined(function: F) -> F:
    """A part of kernels, compiled into each that calls it."""
    compiled: F = numba.njit(inline="always", nogil=True)(function)
    return compiled


def _jit(function: F, cache: bool) -> F:
    compiled: F = numba.njit(cache=cache, nogil=True)(function)
    return compiled
