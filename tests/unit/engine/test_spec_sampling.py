"""Seeded sampling: SGLang's hash, the target's distribution, and rows without a seed."""

import pytest
import torch

from seer_sgl.engine.sampling import UNSEEDED, pick, sample_filtered, sample_probs

ROWS, WORDS = 40_000, 5
PROBS = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])


def murmur3(words: list[int]) -> int:
    """The 32-bit hash of a list of 32-bit words, as in Appleby's reference."""
    mask, state = 0xFFFFFFFF, 0
    for word in words:
        spread = word * 0xCC9E2D51 & mask
        turned = (spread << 15 | spread >> 17) & mask
        state ^= turned * 0x1B873593 & mask
        state = ((state << 13 | state >> 19) * 5 + 0xE6546B64) & mask
    state ^= 4 * len(words)
    state = (state ^ state >> 16) * 0x85EBCA6B & mask
    state = (state ^ state >> 13) * 0xC2B2AE35 & mask
    return state ^ state >> 16


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (7, 300), (-1, 5), (2**40 + 3, 8191)])
def test_the_sample_is_that_of_the_hashed_noise(seed: int, position: int) -> None:
    logprobs = PROBS.log()
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, position]
    uniform = torch.tensor([murmur3([*words, word]) / 0xFFFFFFFF for word in range(WORDS)]).double()
    expected = (logprobs - torch.log(-torch.log(uniform))).argmax()
    picked = pick(logprobs.view(1, -1), torch.tensor([seed]), torch.tensor([position]))
    assert picked.tolist() == [[expected.item()]]


def many(seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return PROBS.repeat(len(seeds), 1), seeds, torch.arange(len(seeds))


def frequencies(tokens: torch.Tensor) -> torch.Tensor:
    return torch.bincount(tokens.long(), minlength=WORDS) / len(tokens)


def multinomial(probs: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(probs, 1).view(-1).to(torch.int32)


def test_seeded_samples_are_distributed_as_the_target_says() -> None:
    tokens = sample_probs(multinomial, *many(torch.full((ROWS,), 3)))
    torch.testing.assert_close(frequencies(tokens), PROBS, atol=0.01, rtol=0)


def test_a_seeded_row_gives_the_same_in_any_company_and_another_one_does_not() -> None:
    seeds = torch.where(torch.arange(1000) % 2 == 0, torch.tensor(9), torch.tensor(UNSEEDED))
    torch.manual_seed(1)
    first = sample_probs(multinomial, *many(seeds))
    second = sample_probs(multinomial, *many(seeds))
    alone = sample_probs(multinomial, *many(torch.full((1000,), 9)))
    assert torch.equal(first[::2], second[::2])
    assert torch.equal(first[::2], alone[::2])
    assert not torch.equal(first[1::2], second[1::2])


def test_filters_hold_for_seeded_rows() -> None:
    probs, seeds, positions = many(torch.full((ROWS,), 3))
    whole = torch.full((ROWS,), 1 << 30)
    cases = [
        ((torch.full((ROWS,), 2), torch.ones(ROWS), torch.zeros(ROWS), False), 2),
        ((whole, torch.full((ROWS,), 0.8), torch.zeros(ROWS), False), 3),
        ((whole, torch.ones(ROWS), torch.full((ROWS,), 0.3), True), 3),
    ]
    for filters, kept in cases:
        tokens = sample_filtered(multinomial, probs, *filters, seeds, positions)
        expected = torch.where(torch.arange(WORDS) < kept, PROBS, 0.0)
        torch.testing.assert_close(frequencies(tokens), expected / expected.sum(), atol=0.01, rtol=0)
