"""The small model's tokenizer: a byte-level BPE of the Qwen2 kind, built from the problems.

Every word of the problems is one token, as is every digit, mark and space; other text
falls back to bytes, so any text (in Unicode normal form C) comes back unchanged. Loaders
rebuild the tokenizer of a Qwen2 model with this pre-tokenizer, so it must be this one.
"""

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from seer_sgl.smallmodel import problems

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
PAD_ID, EOS_ID = 0, 1
MAX_LENGTH_TOKENS = 8192
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] or '' }}{% endfor %}"
"""The model knows no turns: a chat is its texts, one after the other."""
PIECE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SAMPLE_PROBLEMS = 2000
_VOCAB_LIMIT = 4000


def sample_texts() -> list[str]:
    """Return enough problems with solutions that every phrase occurs, always the same."""
    rng = random.Random(0)
    texts = []
    for _ in range(_SAMPLE_PROBLEMS):
        problem = problems.draw_problem(rng, rounds=rng.randint(2, 8))
        prompt = problems.render_prompt(problem, rng)
        texts.append(prompt + problems.render_solution(problem, rng, slip_rate=0.1))
    return texts


def build() -> Tokenizer:
    """Return the tokenizer; it merges until every word of the sample is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=_VOCAB_LIMIT,
        min_frequency=1,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    config = special | {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": MAX_LENGTH_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", special)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
