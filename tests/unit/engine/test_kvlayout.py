"""What is read from a scheduler; that it is what SGLang writes: tests/integration/test_page_names.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from seer_sgl.engine.kvlayout import pool_layout


class MooncakeStore(SimpleNamespace):
    """By its name alone it is known."""


def store(**others: Any) -> MooncakeStore:
    config = {"dcp_size": 1, "attn_cp_size": 1, "tp_size": 2, "pp_size": 1, "tp_lcm_size": None}
    known: dict[str, Any] = {
        "storage_config": SimpleNamespace(**{**config, **others.pop("config", {})}),
        "registered_pools": {},
        "mem_pool_host": SimpleNamespace(kv_buffer=object()),
        "is_mla_backend": False,
        "should_split_heads": False,
        "mha_suffix": "0",
        "mla_suffix": "",
        "config_prefix": "small",
    }
    return MooncakeStore(**{**known, **others})


def scheduler(backend: Any, eagle: bool = False) -> Any:
    return SimpleNamespace(
        spec_algorithm=SimpleNamespace(is_eagle=lambda: eagle),
        tree_cache=SimpleNamespace(cache_controller=SimpleNamespace(storage_backend=backend)),
    )


def test_all_ranks_are_named() -> None:
    suffixes = ["_0_k", "_0_v", "_1_k", "_1_v"]
    assert pool_layout(scheduler(store())) == {"prefix": "small", "suffixes": suffixes}
    mla = store(is_mla_backend=True, config_prefix=None)
    assert pool_layout(scheduler(mla)) == {"prefix": "", "suffixes": ["__k"]}


@pytest.mark.parametrize(
    "other",
    [
        SimpleNamespace(),
        SimpleNamespace(tree_cache=SimpleNamespace(cache_controller=None)),
        scheduler(None),
        scheduler(SimpleNamespace(config_prefix="of another backend")),
        scheduler(store(), eagle=True),
        scheduler(store(config={"dcp_size": 2})),
        scheduler(store(config={"attn_cp_size": 2})),
        scheduler(store(storage_config=None)),
        scheduler(store(registered_pools={"swa": object()})),
        scheduler(store(mem_pool_host=SimpleNamespace(kv_buffer=None))),
        scheduler(store(mha_suffix="tp0")),
        scheduler(MooncakeStore()),
    ],
)
def test_where_pages_are_named_otherwise_nothing_is_told(other: Any) -> None:
    assert pool_layout(other) is None
