"""Figures of the Seer paper (arXiv 2511.14617v3) that `bench.policy` shows beside its own."""

BASELINE = {"moonlight": "fifo_group", "qwen2-vl-72b": "fifo_group", "kimi-k2": "least_loaded"}
"""veRL's way in the simulator. For Kimi-K2 an engine is one of an instance's 32 data-parallel ranks: the
group stays in its instance, which spreads its requests over the ranks by their number."""

TABLE_4 = {
    "moonlight": {"divided": 1.41, "paper_rule": 1.47, "paper_rule+sd": 1.90},
    "qwen2-vl-72b": {"divided": 1.42, "paper_rule": 1.56, "paper_rule+sd": 2.04},
    "kimi-k2": {"divided": 1.16, "paper_rule": 1.27, "paper_rule+sd": 1.53},
}
"""Ablation, cumulative, as multiples of the baseline's throughput."""

FIGURE_10 = {"fifo_group": 1.0, "divided": 1.42, "paper_rule": 1.56, "oracle": 1.63}
"""Length context on Qwen2-VL-72B."""

FIGURE_7: dict[tuple[str, str], dict[str, float]] = {
    ("moonlight", "group 8"): {"streamrl_oracle": 1.21, "paper_rule+sd": 1.78},
    ("moonlight", "group 16"): {"streamrl_oracle": 1.30, "paper_rule+sd": 1.83},
    ("qwen2-vl-72b", "group 8"): {"streamrl_oracle": 1.33, "paper_rule+sd": 1.82},
    ("qwen2-vl-72b", "group 16"): {"streamrl_oracle": 1.43, "paper_rule+sd": 2.04},
    ("kimi-k2", "group 8"): {"streamrl_oracle": 0.99, "paper_rule+sd": 1.48},
    ("kimi-k2", "group 16"): {"streamrl_oracle": 0.94, "paper_rule+sd": 1.44},
}
"""End-to-end throughput, by workload and group size."""

FIGURE_8 = {
    "moonlight": {"total_s": 3910.0, "tail_s": 1817.0},
    "qwen2-vl-72b": {"total_s": 3957.0, "tail_s": 2301.0},
    "kimi-k2": {"total_s": 12202.0, "tail_s": 3144.0},
}
"""veRL's seconds, and those spent on the last 10 % of the requests alone."""

FIGURE_3 = {"qwen2-vl-72b": {"idle": 0.37, "preemptions": 13_686.0}}
"""veRL's share of idle instance time, and its preemptions in one iteration."""

ORACLE_SHARE = 1.56 / 1.63
"""What the paper's rule reaches of its oracle on Qwen2-VL-72B (Figure 10)."""
