"""The small model's tokenizer: one token per phrase word, digit and mark, bytes for the rest.

A word token carries the spaces around it, so decoding is plain concatenation and any
text comes back unchanged.
"""

import json
import random
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from seer_sgl.smallmodel import problems

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
MAX_LENGTH_TOKENS = 8192
PIECE_PATTERN = r" ?[A-Za-z]+ ?|[0-9]| ?[^A-Za-z0-9\s]+[ \n]?|\s"
_SAMPLE_PROBLEMS = 2000


def phrase_pieces() -> list[str]:
    """Return every piece that problems and solutions are made of, sorted."""
    rng = random.Random(0)
    pieces: set[str] = set("0123456789")
    for _ in range(_SAMPLE_PROBLEMS):
        problem = problems.draw_problem(rng, rounds=rng.randint(2, 8))
        text = problems.render_prompt(problem, rng)
        text += problems.render_solution(problem, rng, slip_rate=0.1)
        pieces.update(re.findall(PIECE_PATTERN, text))
    return sorted(pieces)


def build() -> Tokenizer:
    """Return the tokenizer: special tokens, pieces, then one token per byte."""
    vocab = [(token, 0.0) for token in (PAD, EOS, UNK)]
    vocab += [(piece, -1.0) for piece in phrase_pieces()]
    vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=UNK_ID, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE_PATTERN), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    config = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH_TOKENS,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", special)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
