"""Names of pages. What SGLang itself says to them: tests/integration/test_page_names.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_sgl.kv.keys import (
    Objects,
    PageChain,
    mha_suffixes,
    mla_suffixes,
    namespace_seed,
    packed,
    page_digests,
)

IDS = [0, 1, 2, 3, 151643, 4294967295, 7, 8, 9, 10]
PAGES = {
    (None, None): ("baed6423", "b05f198c546259e2e42ba1eff6849cd7b6c55a977a39a974aad467a9fffc8975"),
    (None, ""): ("baed6423", "b05f198c546259e2e42ba1eff6849cd7b6c55a977a39a974aad467a9fffc8975"),
    ("", ""): ("baed6423", "b05f198c546259e2e42ba1eff6849cd7b6c55a977a39a974aad467a9fffc8975"),
    ("a", "b"): ("0ef607c6", "076ebbb29a3919445b96c3a194e7e3c018cf8996415f22beff9265fc557d3e11"),
    ("ab", None): ("4edc0b33", "c5031f157feb2bd353f893f8ae10539068476af60126cad6468dfc31fad36b0b"),
    (None, "ü-e1"): ("2e83454e", "7b4c35388f8d4d05d0538df93bb658ca7f797b6de8eb28794e1b7e26bb01b924"),
}
"""By `extra_key` and `cache_salt`, what SGLang 0.5.23 makes of `IDS` in pages of four: the beginning of
the first page's hash, and the second page's."""


@pytest.mark.parametrize(("extra_key", "salt"), PAGES)
def test_digests_are_sglangs(extra_key: str | None, salt: str | None) -> None:
    digests = page_digests(packed(IDS), 4, namespace_seed(extra_key, salt))
    first, second = PAGES[extra_key, salt]
    assert len(digests) == 2, "two tokens are no page"
    assert digests[0].hex()[:8] == first
    assert digests[1].hex() == second


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=20)), st.integers(1, 7))
def test_a_chain_grows_as_if_it_came_at_once(parts: list[list[int]], page_tokens: int) -> None:
    seed = namespace_seed("x", "y")
    chain = PageChain(seed, page_tokens)
    digests: list[bytes] = []
    for number, part in enumerate(parts):
        digests += chain.extend(packed(part))
        assert chain.tokens == sum(map(len, parts[: number + 1]))
    ids = [token for part in parts for token in part]
    assert digests == page_digests(packed(ids), page_tokens, seed)
    assert chain.pages == len(digests) == len(ids) // page_tokens


@pytest.mark.parametrize("ids", [[-1], [1 << 32]])
def test_what_is_no_token_id_is_refused(ids: list[int]) -> None:
    with pytest.raises(OverflowError):
        packed(ids)


def test_objects_are_named_page_by_page() -> None:
    names = Objects("tag_model", ("_0_k", "_0_v")).keys([b"\x01\xab", b"\x02"])
    assert names == ["tag_model_01ab_0_k", "tag_model_01ab_0_v", "tag_model_02_0_k", "tag_model_02_0_v"]
    assert Objects("", ("__k",)).keys([b"\x01"]) == ["01__k"]


def test_suffixes_of_all_ranks() -> None:
    assert mha_suffixes(2) == ("_0_k", "_0_v", "_1_k", "_1_v")
    assert mha_suffixes(1, pp_size=2) == ("_0_0_k", "_0_0_v", "_0_1_k", "_0_1_v")
    assert mla_suffixes() == ("__k",)
    assert mla_suffixes(2) == ("_0_k", "_1_k")
