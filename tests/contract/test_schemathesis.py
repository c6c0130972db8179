"""schemathesis, unmodified, against the document that the router serves of itself."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from seer_sgl.testing.controls import Asked, Reply
from tests.unit.router.conftest import Cluster, cluster, hurried, server, together

SEED = 5
LEAST_CASES = 2_000
RUN = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
EXAMPLES = 60
"""Per operation and phase, besides those that schemathesis derives from the document itself."""

CHECKS = (
    "not_a_server_error status_code_conformance content_type_conformance response_headers_conformance "
    "response_schema_conformance negative_data_rejection missing_required_header unsupported_method "
    "allow_header_conformance"
).split()


async def schemathesis(it: Cluster, directory: Path) -> tuple[int, str, dict[str, Any]]:
    """Its exit code, what it printed and its report."""
    report = directory / "report.json"
    argv = ["--seed", str(SEED), "--generation-deterministic"]
    argv += ["--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing,stateful"]
    argv += ["--checks", ",".join(CHECKS), "--continue-on-failure", "--request-timeout", "5"]
    argv += ["--suppress-health-check", "all", "--no-color", "--report-json-path", str(report)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, "run"),
        *(f"http://127.0.0.1:{it.config.http_port}/openapi.json", *argv),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert report.exists(), printed.decode()
    return process.returncode or 0, printed.decode(), json.loads(report.read_text())


async def keep_going(it: Cluster) -> None:
    """Undo what keeps others waiting: schemathesis pauses the router, and releases its memory, too."""
    while True:
        await asyncio.sleep(0.2)
        await it.http.post("/continue_generation", json={})
        await it.http.post("/resume_memory_occupation", json={})


def asked_for(asked: Asked, *names: str) -> Any:
    """The first of these fields that a body has; None where it is no object, or has none."""
    try:
        body = asked.json()
    except ValueError:
        return None
    return (
        next((body[name] for name in names if body.get(name)), None) if isinstance(body, dict) else None
    )


def openai_answer(asked: Asked) -> Reply:
    """As SGLang's own OpenAI layer, for a text that is always the same."""
    if asked_for(asked, "messages", "prompt") is None:
        return Reply(400, {"object": "error", "message": "no prompt", "type": "BadRequestError"})
    return Reply(200, {"object": "text_completion", "choices": [{"index": 0, "text": "x"}]})


def tokenized(asked: Asked) -> Reply:
    """As SGLang, strict about what it is asked."""
    prompt = asked_for(asked, "prompt")
    if isinstance(prompt, str):
        return Reply(200, {"tokens": list(prompt.encode()), "count": len(prompt)})
    if isinstance(prompt, list) and all(isinstance(text, str) for text in prompt):
        return Reply(200, {"tokens": [list(text.encode()) for text in prompt]})
    return Reply(400, {"object": "error", "message": "prompt must be text", "type": "BadRequestError"})


def detokenized(asked: Asked) -> Reply:
    tokens = asked_for(asked, "tokens")
    if isinstance(tokens, list) and all(type(token) is int for token in tokens):
        return Reply(200, {"text": "x" * len(tokens)})
    if isinstance(tokens, list) and all(isinstance(row, list) for row in tokens):
        return Reply(200, {"text": ["x" * len(row) for row in tokens]})
    return Reply(400, {"object": "error", "message": "no tokens", "type": "BadRequestError"})


ENGINE = {
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions"), openai_answer),
    **dict.fromkeys(("/tokenize", "/v1/tokenize"), tokenized),
    **dict.fromkeys(("/detokenize", "/v1/detokenize"), detokenized),
}
"""What an engine answers where the fake one is not strict enough."""


@pytest.mark.timeout(300)
def test_the_document_is_true(tmp_path: Path) -> None:
    async def scenario() -> None:
        engines = server("a"), server("b")
        for engine in engines:
            engine.script.update(ENGINE)
        async with cluster(*engines, data_dir=tmp_path / "data") as it, together(keep_going(it)):
            code, printed, report = await schemathesis(it, tmp_path)
        (tmp_path / "printed").write_text(printed)
        assert code == 0, printed
        assert report["test_cases"]["generated"] >= LEAST_CASES

    with hurried():
        asyncio.run(scenario())
