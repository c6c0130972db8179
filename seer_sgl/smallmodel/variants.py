"""Other weights for the small model, for tests and benchmarks of weight changes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from seer_sgl.smallmodel import WEIGHTS

SPREAD = 0.1
"""Standard deviation of a weight's change, relative to the weight: the text stays text, and no
log-probability stays what it was."""


def changed(seed: int) -> dict[str, torch.Tensor]:
    """The small model's weights, each a little off: another policy."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for name, weight in load_file(WEIGHTS / "model.safetensors").items():
        noise = torch.randn(weight.shape, generator=generator)
        found[name] = (weight.float() * (1.0 + SPREAD * noise)).to(weight.dtype)
    return found


def save_variant(folder: Path, weights: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """Write a checkpoint of the small model with these weights.

    Args:
        folder: must not be there yet.
        config: fields of `config.json` that are to be others.
    """
    shutil.copytree(WEIGHTS, folder)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**told, **config}), encoding="utf-8")
    return folder
