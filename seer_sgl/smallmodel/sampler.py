"""Plain batched sampling from the small model, without a server."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seer_sgl.smallmodel.decoder import Decoder, KvCache
from seer_sgl.smallmodel.tokenizer import EOS_ID, PAD_ID

_FIRST_CAPACITY_TOKENS = 512
_COMPACT_SHARE = 0.9


@dataclass
class Sample:
    """Token ids of one output, without the end-of-sequence token it may have reached."""

    ids: list[int]
    ended: bool


def sample(
    model: Decoder,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Sample]:
    """Sample one output per prompt (lists of token ids), all rows in one batch.

    Finished rows leave the batch once they make up a tenth of it.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, pad_tokens = _pad_left(prompts)
    cache = KvCache(model.config, pad_tokens, ids.shape[1] + _FIRST_CAPACITY_TOKENS)
    samples = [Sample([], False) for _ in prompts]
    rows = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            ids = _draw(model.logits(model(ids, cache)[:, -1]), temperature, generator)
        for row, token in zip(rows, ids[:, 0].tolist(), strict=True):
            _record(samples[row], token)
        kept = [place for place, row in enumerate(rows) if not samples[row].ended]
        if not kept:
            break
        if len(kept) <= _COMPACT_SHARE * len(rows):
            rows = [rows[place] for place in kept]
            ids = ids[kept]
            cache.keep(torch.tensor(kept))
    return samples


def _record(output: Sample, token: int) -> None:
    if output.ended:
        return
    if token == EOS_ID:
        output.ended = True
    else:
        output.ids.append(token)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw ids [rows, 1] from logits [rows, vocabulary]."""
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)


def _pad_left(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids [rows, tokens] and the padding of each row [rows], in tokens."""
    longest = max(len(prompt) for prompt in prompts)
    pad_tokens = torch.tensor([longest - len(prompt) for prompt in prompts])
    ids = [[PAD_ID] * (longest - len(prompt)) + prompt for prompt in prompts]
    return torch.tensor(ids), pad_tokens
