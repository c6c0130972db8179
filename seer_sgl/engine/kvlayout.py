"""What a server calls the objects of one KV page in the Mooncake store: read where it runs."""

import logging
from typing import Any

from seer_sgl.kv.keys import mha_suffixes, mla_suffixes

log = logging.getLogger(__name__)


def pool_layout(scheduler: Any) -> dict[str, Any] | None:
    """`prefix` and `suffixes` of `seer_sgl.kv.keys.Objects`; None where pages are named otherwise.

    That is: no such store, pools beside the one of keys and values (sliding windows, state spaces, a
    draft model's), pages divided among context-parallel ranks, or pages of pairs of tokens (EAGLE).
    """
    try:
        store = scheduler.tree_cache.cache_controller.storage_backend
        if type(store).__name__ != "MooncakeStore" or scheduler.spec_algorithm.is_eagle():
            return None
        return _layout(store)
    except AttributeError as error:  # no hierarchical cache, or a SGLang that has changed
        log.debug("no layout of the pool: %s", error)
        return None


def _layout(store: Any) -> dict[str, Any] | None:
    config = store.storage_config
    if config is None or config.dcp_size > 1 or config.attn_cp_size > 1:
        return None
    others = [name for name in store.registered_pools if name != "kv"]
    if others or store.mem_pool_host.kv_buffer is None:
        return None
    suffixes = _suffixes(store, config)
    return None if suffixes is None else {"prefix": store.config_prefix or "", "suffixes": suffixes}


def _suffixes(store: Any, config: Any) -> list[str] | None:
    """Of all ranks. None where this rank's own are not among them: SGLang has changed."""
    if store.is_mla_backend:
        suffixes, own = mla_suffixes(config.pp_size), [store.mla_suffix]
    else:
        shards = config.tp_lcm_size if store.should_split_heads else config.tp_size
        suffixes = mha_suffixes(shards, config.pp_size)
        own = store.mha_suffix if store.should_split_heads else [store.mha_suffix]
    return list(suffixes) if all(f"_{name}_k" in suffixes for name in own) else None
