"""Whether two sets of samples can come from one distribution."""

import torch


def homogeneity_p(left: torch.Tensor, right: torch.Tensor) -> float:
    """Chance of a difference as large as that between two `[samples, positions]` sets of tokens.

    A chi-square test per position, and Bonferroni's bound over the positions. Tokens that are seen fewer
    than 20 times are one cell.
    """
    positions = left.shape[1]
    chances = [_position_p(left[:, at], right[:, at]) for at in range(positions)]
    return float(min(1.0, positions * min(chances)))


def _position_p(left: torch.Tensor, right: torch.Tensor) -> float:
    size = int(max(left.max(), right.max())) + 1
    counts = torch.stack([torch.bincount(side, minlength=size) for side in (left, right)]).double()
    common = counts.sum(dim=0) >= 20
    cells = torch.cat([counts[:, common], counts[:, ~common].sum(dim=1, keepdim=True)], dim=1)
    cells = cells[:, cells.sum(dim=0) > 0]
    expected = cells.sum(dim=1, keepdim=True) * cells.sum(dim=0) / cells.sum()
    statistic = ((cells - expected) ** 2 / expected).sum()
    degrees = torch.tensor(max(cells.shape[1] - 1, 1), dtype=torch.float64)
    chance: float = torch.special.gammaincc(degrees / 2, statistic / 2).item()
    return chance
