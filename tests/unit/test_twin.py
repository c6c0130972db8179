"""The padded twin says what the small model says."""

import torch

from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel.checkpoint import load
from seer_sgl.smallmodel.twin import widened


def test_wider_layers_change_no_output() -> None:
    model = load(WEIGHTS)
    twin = widened(model, 1500)
    assert twin.config.intermediate_size == 1500
    tokens = torch.arange(2, 66).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens), model(tokens), atol=2e-4, rtol=0)
