"""The small model's problems, tokenizer and committed files, without torch."""

import json
import random
import re

import pytest

from seer_sgl.smallmodel import WEIGHTS, figures, problems

MAX_WEIGHTS_BYTES = 12_000_000


def drawn_problems(count: int, seed: int) -> list[tuple[problems.Problem, str, random.Random]]:
    rng = random.Random(seed)
    drawn = []
    for _ in range(count):
        problem = problems.draw_problem(rng)
        drawn.append((problem, problems.render_prompt(problem, rng), rng))
    return drawn


def test_answer_of_a_hand_worked_problem() -> None:
    # 3 -> 3*7+4 = 25 -> 5*7+4 = 39 -> 9*7+4 = 67
    assert problems.Problem(3, 7, 4, 3).answer() == 7


def test_prompt_parses_back_to_its_problem() -> None:
    for problem, prompt, _ in drawn_problems(200, seed=1):
        assert problems.parse_prompt(prompt) == problem


def test_text_that_is_no_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="4 numbers"):
        problems.parse_prompt("Start at 3.")


def test_solutions_without_slips_earn_full_reward() -> None:
    for problem, prompt, rng in drawn_problems(200, seed=2):
        solution = problems.render_solution(problem, rng, slip_rate=0.0)
        assert problems.reward(prompt, solution) == 1.0
        assert problems.reward(prompt, solution + "<eos>") == 1.0


def test_wrong_missing_and_unfinished_answers_earn_nothing() -> None:
    for problem, prompt, rng in drawn_problems(100, seed=3):
        solution = problems.render_solution(problem, rng, slip_rate=0.0)
        wrong = solution[:-2] + str((problem.answer() + 1) % 10) + "."
        assert problems.reward(prompt, wrong) == 0.0
        assert problems.reward(prompt, solution[:-1]) == 0.0
        assert problems.reward(prompt, solution + " Left 001: ") == 0.0
        assert problems.reward(prompt, "") == 0.0


def test_some_but_not_all_training_solutions_are_wrong() -> None:
    rewards = [
        problems.reward(prompt, problems.render_solution(problem, rng))
        for problem, prompt, rng in drawn_problems(500, seed=4)
    ]
    assert 0.5 < sum(rewards) / len(rewards) < 0.9


def test_solution_counts_every_round_down_to_one() -> None:
    rng = random.Random(5)
    problem = problems.Problem(4, 3, 2, 40)
    solution = problems.render_solution(problem, rng, slip_rate=0.0)
    heads = [int(number) for number in re.findall(r"\b(\d{3})\b", solution)]
    assert heads[-40:] == list(range(40, 0, -1))


def test_prompts_are_set_by_count_and_seed() -> None:
    assert problems.prompts(20, 7) == problems.prompts(20, 7)
    assert problems.prompts(20, 7) != problems.prompts(20, 8)
    assert len(set(problems.prompts(20, 7))) == 20


@pytest.mark.parametrize("seed", range(5))
def test_sizes_of_64_prompts_have_a_long_tail(seed: int) -> None:
    sizes = sorted(problems.parse_prompt(prompt).rounds for prompt in problems.prompts(64, seed))
    assert sizes[0] == problems.MIN_ROUNDS
    assert sizes[-1] <= problems.MAX_ROUNDS
    assert sizes[-1] / sizes[32] > 6


def test_siblings_differ_in_text() -> None:
    rng = random.Random(9)
    problem = problems.Problem(1, 3, 1, 10)
    assert len({problems.render_solution(problem, rng) for _ in range(8)}) == 8


def test_committed_tokenizer_gives_texts_back() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    texts = ["", "Hello, w\u00f6rld!  two\n\n\tdef f(x): <0x41"]
    for problem, prompt, rng in drawn_problems(100, seed=11):
        texts.append(prompt + problems.render_solution(problem, rng))
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_committed_tokenizer_is_the_one_the_module_builds() -> None:
    pytest.importorskip("tokenizers")
    from seer_sgl.smallmodel import tokenizer as small_tokenizer

    built = json.loads(small_tokenizer.build().to_str())
    assert built == json.loads((WEIGHTS / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((WEIGHTS / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == small_tokenizer.CHAT_TEMPLATE
    assert built["model"]["vocab"][small_tokenizer.EOS] == small_tokenizer.EOS_ID
    assert built["model"]["vocab"][small_tokenizer.PAD] == small_tokenizer.PAD_ID


def test_committed_configuration_and_weights() -> None:
    config = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((WEIGHTS / "tokenizer.json").read_text(encoding="utf-8"))
    generation = json.loads((WEIGHTS / "generation_config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["max_position_embeddings"] >= 8192
    assert config["vocab_size"] == len(tokenizer["model"]["vocab"])
    assert config["eos_token_id"] == generation["eos_token_id"] == 1
    assert 4_000_000 < (WEIGHTS / "model.safetensors").stat().st_size <= MAX_WEIGHTS_BYTES


def test_percentile_is_linear_between_neighbours() -> None:
    assert figures.percentile([30, 10, 20], 0.5) == 20
    assert figures.percentile([10, 20], 0.25) == pytest.approx(12.5)


def test_intraclass_correlation_of_known_groups() -> None:
    assert figures.intraclass_correlation([[1, 1], [9, 9]]) == pytest.approx(1.0)
    # Group means are alike, members are not: ICC(1) of pairs is then -1.
    assert figures.intraclass_correlation([[1, 9], [1, 9]]) == pytest.approx(-1.0)
    # between = 2 * 8 = 16, within = 2, (16 - 2) / (16 + 2)
    assert figures.intraclass_correlation([[1, 3], [5, 7]]) == pytest.approx(14 / 18)


def test_summary_counts_only_ended_outputs_as_rewarded() -> None:
    prompt = "Start at 3. Each round: times 7, plus 4, keep the last digit. Do 003 rounds.\n"
    right = "The answer is 7."
    group = [figures.Output(right, 10, True), figures.Output(right, 30, False)]
    other = [figures.Output("The answer is 1.", 20, True)] * 2
    summary = figures.summarize([prompt, prompt], [group, other])
    assert summary["mean_reward"] == 0.25
    assert summary["mixed_group_share"] == 0.5
    assert summary["ended_share"] == 0.75
    assert summary["max_tokens"] == 30
