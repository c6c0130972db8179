"""Writes and reads the small model's folder: weights, configuration and tokenizer."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seer_sgl.smallmodel import tokenizer as small_tokenizer
from seer_sgl.smallmodel.decoder import Decoder, DecoderConfig

ZEROED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""Parameters that are zero in a padding layer, so that it adds nothing."""


def save(model: Decoder, directory: Path) -> None:
    """Write weights (rounded to bfloat16), config.json, generation_config.json, tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    _write_json(directory / "config.json", config_fields(model.config))
    generation: dict[str, object] = {
        "do_sample": True,
        "temperature": 1.0,
        "eos_token_id": small_tokenizer.EOS_ID,
        "pad_token_id": small_tokenizer.PAD_ID,
    }
    _write_json(directory / "generation_config.json", generation)
    small_tokenizer.save(small_tokenizer.build(), directory)


def load(directory: Path) -> Decoder:
    """Read a folder written by ``save``; the weights come back in float32."""
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = DecoderConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        layers=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        kv_heads=fields["num_key_value_heads"],
        head_dim=fields["head_dim"],
        rope_theta=fields["rope_theta"],
        rms_norm_eps=fields["rms_norm_eps"],
    )
    model = Decoder(config)
    tensors = load_file(directory / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def with_padding_layers(model: Decoder, count: int) -> Decoder:
    """Return a model with the same outputs and ``count`` more layers that add nothing.

    A padding layer copies a trained one, so it computes on values of the usual range, but
    its two output projections are zero.
    """
    config = model.config
    padded = Decoder(replace(config, layers=config.layers + count))
    tensors: dict[str, Tensor] = dict(model.state_dict())
    for extra in range(count):
        source = f"model.layers.{extra % config.layers}."
        target = f"model.layers.{config.layers + extra}."
        for name, tensor in model.state_dict().items():
            if name.startswith(source):
                part = name.removeprefix(source)
                zeroed = torch.zeros_like(tensor) if part in ZEROED else tensor
                tensors[target + part] = zeroed
    padded.load_state_dict(tensors)
    return padded


def config_fields(config: DecoderConfig) -> dict[str, object]:
    """Return the fields of config.json; servers run the model in float32."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": small_tokenizer.MAX_LENGTH_TOKENS,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        "eos_token_id": small_tokenizer.EOS_ID,
        "pad_token_id": small_tokenizer.PAD_ID,
        "bos_token_id": None,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
