"""The unmodified `openai` client's files and batches over real servers."""

from typing import Any

import openai
import pytest

from seer_sgl.smallmodel.problems import prompts
from tests.batches import Desk, line, whole_walk
from tests.integration.conftest import MODEL, Cluster

PROMPTS = prompts(8, seed=23)
LINES = 24
TOKENS = 40


def ours(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", timeout=300)


def test_lines_for_generate(cluster: Cluster) -> None:
    sampling = {"max_new_tokens": TOKENS, "temperature": 1.0, "ignore_eos": True}
    bodies = [
        {"text": text, "sampling_params": sampling, "return_logprob": True, "group_id": f"g{number}"}
        for number, text in enumerate(PROMPTS)
        for _ in range(LINES // len(PROMPTS))
    ]
    endless = {"text": PROMPTS[0], "sampling_params": {**sampling, "max_new_tokens": 400}}
    with ours(cluster) as client:
        whole_walk(client, bodies, endless)


CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_lines_for_openais_own_endpoints(cluster: Cluster, endpoint: str) -> None:
    def body(number: int, **more: Any) -> dict[str, Any]:
        text = PROMPTS[number % len(PROMPTS)]
        asked = (
            {"messages": [{"role": "user", "content": text}]} if endpoint == CHAT else {"prompt": text}
        )
        return {"model": MODEL, **asked, "max_tokens": TOKENS, **more}

    with ours(cluster) as client:
        desk = Desk(client)
        content = b"".join(line(f"c{n}", endpoint, body(n, n=1 + n % 2)) for n in range(LINES))
        content += line("bad", endpoint, body(0, temperature=-1))
        batch = desk.ended(desk.create(desk.upload(content).id, endpoint))
        output, errors = desk.lines(batch.output_file_id), desk.lines(batch.error_file_id)
        other = line("c0", endpoint, body(0)) + line("c1", endpoint, body(0, model="another"))
        failed = desk.ended(desk.create(desk.upload(other).id, endpoint))

    assert (batch.status, batch.model) == ("completed", MODEL)
    assert set(output) == {f"c{n}" for n in range(LINES)}
    answers = {name: each["response"]["body"] for name, each in output.items()}
    assert [len(answers[f"c{n}"]["choices"]) for n in range(LINES)] == [1, 2] * (LINES // 2)
    assert batch.usage is not None
    assert batch.usage.output_tokens > 0
    used = [answer["usage"] for answer in answers.values()]
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in used)
    assert batch.usage.total_tokens == sum(each["total_tokens"] for each in used)
    assert errors["bad"]["response"]["status_code"] == 400
    assert set(errors) == {"bad"}

    assert (failed.status, failed.output_file_id) == ("failed", None)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(e.code, e.line, e.param) for e in failed.errors.data] == [
        ("model_not_found", 2, "body.model")
    ]
