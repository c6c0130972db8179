"""How this package's kernels are compiled: kept on disk where that can be written to."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

PACKAGE = Path(__file__).parents[1]
LEAST_FREE_BYTES = 64 << 20
"""All kernels take some 4 MB on disk; numba raises in the middle of a call where that is not free."""

cache_failures: list[str] = []
"""Why kernels of this process are compiled in memory alone; empty where the disk cache works."""


def kernel(function: F) -> F:
    """Compile on first use, without the GIL, kept on disk for the next process.

    A cache folder that cannot be written costs seconds at each start, no more: it is logged once.
    """
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
        _prepare(Path(compiled.stats.cache_path))
    except (RuntimeError, OSError) as error:  # no folder that may be written to, or a full one
        if not cache_failures:
            log.warning("kernels are compiled anew in every process: %s; set NUMBA_CACHE_DIR", error)
        cache_failures.append(str(error))
        compiled = numba.njit(nogil=True)(function)
    kept: F = compiled
    return kept


def inlined(function: F) -> F:
    """A part of kernels, compiled into each that calls it."""
    compiled: F = numba.njit(inline="always", nogil=True)(function)
    return compiled


@cache
def _prepare(folder: Path) -> None:
    """Look at a cache folder before the first kernel goes there.

    Kernels older than any source of the package are removed: numba compares a kernel with its own file
    alone, and kernels here call those of other files.

    Raises:
        OSError: it is full.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < LEAST_FREE_BYTES:
        raise OSError(f"{folder} has {free_bytes >> 20} MiB free, less than {LEAST_FREE_BYTES >> 20}")
    newest_s = max(source.stat().st_mtime for source in PACKAGE.rglob("*.py"))
    for index in folder.glob("*.nbi"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            if index.stat().st_mtime < newest_s:
                index.unlink()
