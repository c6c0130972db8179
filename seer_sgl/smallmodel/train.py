"""Trains the small model, or writes a heavier twin of existing weights.

python -m seer_sgl.smallmodel.train --out DIR [--minutes 18] [--seed 0]
python -m seer_sgl.smallmodel.train --out DIR --from WEIGHTS --pad-layers N
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from seer_sgl.smallmodel import checkpoint, problems
from seer_sgl.smallmodel import tokenizer as small_tokenizer
from seer_sgl.smallmodel.decoder import Decoder, DecoderConfig

THREADS = 2
PEAK_LEARNING_RATE = 3e-3
WARMUP_SHARE = 0.03
WEIGHT_DECAY = 0.05
BATCH_TOKENS = 3072
POOL_PROBLEMS = 256
SHORT_SHARE = 0.25
"""Share of the time in which only problems of at most ``SHORT_ROUNDS`` are seen."""

SHORT_ROUNDS = 12
REPORT_EVERY_STEPS = 100


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its solution; the first ``prompt_tokens`` bear no loss."""

    ids: list[int]
    prompt_tokens: int


def draw_examples(
    tokenizer: Tokenizer, rng: random.Random, count: int, max_rounds: int
) -> list[Example]:
    """Draw ``count`` solved problems of at most ``max_rounds``, each ended by <eos>."""
    examples = []
    for _ in range(count):
        problem = problems.draw_problem(rng)
        while problem.rounds > max_rounds:
            problem = problems.draw_problem(rng)
        prompt = tokenizer.encode(problems.render_prompt(problem, rng)).ids
        solution = tokenizer.encode(problems.render_solution(problem, rng)).ids
        examples.append(Example([*prompt, *solution, small_tokenizer.EOS_ID], len(prompt)))
    return examples


def batches(examples: list[Example], rng: random.Random) -> list[list[Example]]:
    """Group examples of like length into batches of about ``BATCH_TOKENS``, shuffled."""
    grouped: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda item: len(item.ids)):
        if grouped[-1] and (len(grouped[-1]) + 1) * len(example.ids) > BATCH_TOKENS:
            grouped.append([])
        grouped[-1].append(example)
    rng.shuffle(grouped)
    return grouped


def collate(batch: list[Example]) -> tuple[Tensor, Tensor]:
    """Return ids and labels, both [rows, tokens]; labels are -100 where no loss counts."""
    width = max(len(example.ids) for example in batch) - 1
    ids = torch.full((len(batch), width), small_tokenizer.PAD_ID)
    labels = torch.full((len(batch), width), -100)
    for row, example in enumerate(batch):
        length = len(example.ids) - 1
        ids[row, :length] = torch.tensor(example.ids[:-1])
        first = example.prompt_tokens - 1
        labels[row, first:length] = torch.tensor(example.ids[example.prompt_tokens :])
    return ids, labels


def loss_of(model: Decoder, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats per solution token, computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids)
        counted = labels != -100
        logits = model.logits(hidden[counted])
    return F.cross_entropy(logits.float(), labels[counted])


def learning_rate(progress: float) -> float:
    """Return the rate at a share ``progress`` of the time: warm-up, then a cosine to 0."""
    if progress < WARMUP_SHARE:
        return PEAK_LEARNING_RATE * progress / WARMUP_SHARE
    turn = (progress - WARMUP_SHARE) / (1.0 - WARMUP_SHARE)
    return PEAK_LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * min(turn, 1.0)))


def timed_batches(
    tokenizer: Tokenizer, seed: int, duration_s: float
) -> Iterator[tuple[float, list[Example]]]:
    """Yield (share of the time gone, batch) until ``duration_s`` is over."""
    rng = random.Random(seed)
    start_s = time.monotonic()
    while True:
        short = (time.monotonic() - start_s) / duration_s < SHORT_SHARE
        max_rounds = SHORT_ROUNDS if short else problems.MAX_ROUNDS
        for batch in batches(draw_examples(tokenizer, rng, POOL_PROBLEMS, max_rounds), rng):
            progress = (time.monotonic() - start_s) / duration_s
            if progress >= 1.0:
                return
            yield progress, batch


def train(duration_s: float, seed: int) -> Decoder:
    """Train a new model for ``duration_s`` and return it."""
    torch.manual_seed(seed)
    tokenizer = small_tokenizer.build()
    model = new_model(tokenizer.get_vocab_size())
    optimizers = new_optimizers(model)
    start_s, seen_tokens, mean_loss = time.monotonic(), 0, 0.0
    for step, (progress, batch) in enumerate(timed_batches(tokenizer, seed, duration_s)):
        loss = loss_of(model, *collate(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress)
            optimizer.step()
            optimizer.zero_grad()
        seen_tokens += sum(len(example.ids) for example in batch)
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % REPORT_EVERY_STEPS == 0:
            elapsed_s = time.monotonic() - start_s
            line = f"step {step} {elapsed_s:.0f} s {seen_tokens} tokens loss {mean_loss:.4f}"
            print(line, flush=True)
    return model


def new_model(vocab_size: int) -> Decoder:
    """Return an untrained decoder; output projections start smaller, as depth grows."""
    model = Decoder(DecoderConfig(vocab_size))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            small = name.removeprefix("model.layers.")[2:] in checkpoint.ZEROED
            std = 0.02 if small or "embed" in name else parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return model


def new_optimizers(model: Decoder) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embedding, biases and norms."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        chosen = matrices if parameter.dim() == 2 and "embed" not in name else others
        chosen.append(parameter)
    muon = torch.optim.Muon(
        matrices,
        lr=PEAK_LEARNING_RATE,
        momentum=0.95,
        weight_decay=WEIGHT_DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        others, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    return [muon, adamw]


def main() -> None:
    """Train or pad, then write the model folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=18.0, help="training time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pad-layers",
        type=int,
        default=0,
        metavar="N",
        help="add N layers that compute and add nothing",
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="DIR",
        help="pad these weights instead of training",
    )
    arguments = parser.parse_args()
    if arguments.source is not None and arguments.pad_layers < 1:
        parser.error("--from only goes with --pad-layers N, N at least 1")
    torch.set_num_threads(THREADS)
    if arguments.source is None:
        model = train(arguments.minutes * 60.0, arguments.seed)
    else:
        model = checkpoint.load(arguments.source)
    checkpoint.save(checkpoint.with_padding_layers(model, arguments.pad_layers), arguments.out)


if __name__ == "__main__":
    main()
