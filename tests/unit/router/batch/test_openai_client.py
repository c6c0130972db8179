"""The unmodified `openai` client against a router in a process of its own."""

from pathlib import Path

import openai

from seer_sgl.engine.process import free_port
from tests.batches import whole_walk
from tests.unit.router.batch.test_kill import process, prompt, wait_healthy


def test_files_and_batches(tmp_path: Path) -> None:
    http_port, agent_port = free_port(), free_port()
    url = f"http://127.0.0.1:{http_port}"
    bodies = [
        {"input_ids": prompt(number // 4), "sampling_params": {"max_new_tokens": 5}}
        for number in range(40)
    ]
    endless = {"input_ids": prompt(1), "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        process("engine", str(agent_port), str(tmp_path / "asked"), "0.05"),
        process("router", str(http_port), str(agent_port), str(tmp_path / "data")),
    ):
        wait_healthy(url)
        whole_walk(client, bodies, endless)
