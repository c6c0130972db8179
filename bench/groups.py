"""Real groups of samples as token ids, for whatever replays them.

A folder holds gzipped JSONL files, a sample per line with `group` and `text`; a byte-pair table in
tiktoken's form turns text into ids. The Qwen table of PyPI's `dashscope` is looked for where none is
named. Every sample ends with one end-of-sequence token.
"""

import base64
import gzip
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RANKS_IN_DASHSCOPE = "resources/qwen.tiktoken"


@dataclass(frozen=True)
class Traces:
    """A named set of groups; each group a list of samples in the file's order."""

    name: str
    groups: list[list[IntArray]]

    @property
    def tokens(self) -> int:
        """Of all samples."""
        return sum(sample.size for group in self.groups for sample in group)


class Tokenizer:
    """Text to ids with a table of ranks; the first id above them ends a sample."""

    def __init__(self, ranks_path: Path) -> None:
        import tiktoken

        lines = ranks_path.read_bytes().splitlines()
        pairs = (line.split() for line in lines if line)
        ranks = {base64.b64decode(piece): int(rank) for piece, rank in pairs}
        self.end_of_sequence = max(ranks.values()) + 1
        self._encoding = tiktoken.Encoding(
            "ranks", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def encode(self, text: str) -> IntArray:
        """The ids of one sample, its end included."""
        ids = self._encoding.encode_ordinary(text)
        return np.array([*ids, self.end_of_sequence], dtype=np.int32)


def find_ranks() -> Path:
    """The Qwen table of an installed `dashscope`, which is not imported for it."""
    spec = importlib.util.find_spec("dashscope")
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = Path(folder) / RANKS_IN_DASHSCOPE
        if path.exists():
            return path
    raise FileNotFoundError(
        f"dashscope/{RANKS_IN_DASHSCOPE}: not installed. Name a table with --ranks FILE, or "
        "pip install dashscope==2.0.2 --no-deps"
    )


def load_folder(folder: Path, ranks_path: Path) -> list[Traces]:
    """Every file of a folder, by name."""
    paths = sorted(folder.glob("*.jsonl.gz"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no *.jsonl.gz. Name a folder that holds group traces.")
    tokenizer = Tokenizer(ranks_path)
    return [load_file(path, tokenizer) for path in paths]


def load_file(path: Path, tokenizer: Tokenizer) -> Traces:
    """One file's groups, in the order in which they begin."""
    groups: dict[str, list[IntArray]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            groups.setdefault(str(row["group"]), []).append(tokenizer.encode(row["text"]))
    return Traces(path.name.removesuffix(".jsonl.gz"), list(groups.values()))


def sample_small_model(prompts: int, samples: int, max_new_tokens: int = 2_000, seed: int = 1) -> Traces:
    """Groups that the small model says at temperature 1."""
    import torch
    from tokenizers import Tokenizer as SmallTokenizer

    from seer_sgl.smallmodel import WEIGHTS, checkpoint, problems, sampler
    from seer_sgl.smallmodel.tokenizer import EOS_ID

    torch.set_num_threads(1)
    tokenizer = SmallTokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    texts = [text for text in problems.prompts(prompts, seed) for _ in range(samples)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    said = sampler.sample(checkpoint.load(WEIGHTS), ids, max_new_tokens, seed=seed)
    rows = [np.array([*one.ids, *([EOS_ID] * one.ended)], np.int32) for one in said]
    return Traces("small model", [rows[i : i + samples] for i in range(0, len(rows), samples)])
