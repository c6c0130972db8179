"""The padded twin: the small model's outputs at the cost of a larger one.

A step of the small model is mostly Python, so nothing that saves arithmetic or memory traffic shows on
it. The twin has wider MLPs, in which the added columns of `down_proj` are zero, and may have more
layers, in which both output projections are: what is added is read and computed, and changes nothing.

Run `python -m seer_sgl.smallmodel.twin OUT_DIR`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel.checkpoint import load, save, with_padding_layers
from seer_sgl.smallmodel.decoder import Decoder

INTERMEDIATE_SIZE = 16_384
"""200 MB of float32 weights, which one step reads: 10 ms and more at batch 1 on a core or two."""


def widened(model: Decoder, intermediate_size: int) -> Decoder:
    """Return a model with the same outputs whose MLPs have so many neurons."""
    twin = Decoder(replace(model.config, intermediate_size=intermediate_size))
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("mlp.gate_proj.weight", "mlp.up_proj.weight")):
            # Copies of trained neurons: they compute on values of the usual range.
            copies = -(-intermediate_size // len(tensor))
            tensors[name] = tensor.repeat(copies, 1)[:intermediate_size]
        elif name.endswith("mlp.down_proj.weight"):
            padded = torch.zeros(len(tensor), intermediate_size, dtype=tensor.dtype)
            padded[:, : tensor.shape[1]] = tensor
            tensors[name] = padded
        else:
            tensors[name] = tensor
    twin.load_state_dict(tensors)
    return twin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m seer_sgl.smallmodel.twin", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="OUT_DIR")
    parser.add_argument("--intermediate-size", type=int, default=INTERMEDIATE_SIZE)
    parser.add_argument("--padding-layers", type=int, default=0)
    options = parser.parse_args()
    model = with_padding_layers(load(WEIGHTS), options.padding_layers)
    save(widened(model, options.intermediate_size), options.directory)


if __name__ == "__main__":
    main()
