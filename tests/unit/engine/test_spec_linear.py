"""The product of few rows: right, and the same for a row whatever comes with it."""

import pytest
import torch

from seer_sgl.engine.linear import BLOCK, MAX_ROWS, product, serves


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 15, MAX_ROWS])
@pytest.mark.parametrize(("out", "width"), [(12, 16), (256, 256), (8, 2064), (1032, 64)])
def test_it_is_torchs_product(rows: int, out: int, width: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, width), torch.randn(out, width)
    assert serves(x, weight)
    torch.testing.assert_close(product(x, weight, 1), x @ weight.T, atol=1e-3, rtol=1e-4)


def test_a_row_is_computed_alike_among_any_number_of_rows() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(16, 2048), torch.randn(64, 2048)
    together = product(x, weight, 1)
    for rows in (1, 2, 3, 8):
        assert torch.equal(product(x[:rows].contiguous(), weight, 1), together[:rows])


def test_threads_change_nothing() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 256), torch.randn(1028, 256)
    assert torch.equal(product(x, weight, 2), product(x, weight, 1))


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(MAX_ROWS + 1, 16), torch.zeros(8, 16)),
        (torch.zeros(2, 24), torch.zeros(8, 24)),
        (torch.zeros(2, 16), torch.zeros(BLOCK + 1, 16)),
        (torch.zeros(2, 16, dtype=torch.bfloat16), torch.zeros(8, 16, dtype=torch.bfloat16)),
        (torch.zeros(2, 32)[:, :16], torch.zeros(8, 16)),
        (torch.zeros(0, 16), torch.zeros(8, 16)),
    ],
)
def test_what_does_not_fit_is_left_to_torch(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert not serves(x, weight)
