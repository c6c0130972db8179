"""The batch path of the router benchmark: a file of short `/generate` lines, over no-op engines.

Uploaded, started, polled and downloaded as any client of OpenAI's files and batches API would.
"""

import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.load_checks import DISTINCT, first_token
from bench.report import Row
from bench.routers import difference, get_json, running, start_router, wait_for

PROMPT_TOKENS = 8
NEW_TOKENS = 8
ENDED = ("completed", "failed", "expired", "cancelled")
BOUNDARY = "seer-sgl-benchmark"


def rows(lines: int, log_dir: Path) -> list[Row]:
    """Run one batch of that many lines; a row of what it took."""
    with contextlib.ExitStack() as stack:
        port, router = start_router(stack, log_dir, "--data-dir", str(log_dir / "data"))
        head = f"127.0.0.1:{router.argument('--agent-port')}"
        argv = [sys.executable, "-m", "bench.noop_engines", head]
        engines = stack.enter_context(running("noop engines", argv, log_dir))
        base = f"http://127.0.0.1:{port}"
        wait_for(router, f"{base}/health", lambda seen: seen["engines"] == 2)
        upload_began_s = time.monotonic()
        file_id = upload(base, input_lines(lines))["id"]
        upload_s = time.monotonic() - upload_began_s
        before = {each.name: each.cpu_s() for each in (router, engines)}
        began_s = time.monotonic()
        batch = run(base, file_id)
        seconds = time.monotonic() - began_s
        cpu_s = difference({each.name: each.cpu_s() for each in (router, engines)}, before)
        rss_mib, pss_mib = router.memory_mib()
        faults = check(batch, content(base, batch["output_file_id"]), lines)
    return [
        {
            "table": "batch",
            "lines": lines,
            "status": batch["status"],
            "lines_per_s": round(lines / seconds),
            "seconds": round(seconds, 2),
            "upload_s": round(upload_s, 2),
            "lines_wrong": faults,
            "router_us_per_line": round(cpu_s[router.name] * 1e6 / lines),
            "engines_us_per_line": round(cpu_s[engines.name] * 1e6 / lines),
            "router_rss_mib": round(rss_mib),
            "router_pss_mib": round(pss_mib),
        }
    ]


def input_lines(count: int) -> bytes:
    """A batch file of short prompts, no two alike."""
    assert count <= DISTINCT
    rest = list(range(1000, 1000 + PROMPT_TOKENS - 1))
    params = {"max_new_tokens": NEW_TOKENS, "temperature": 1.0}
    lines = (
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/generate",
            "body": {"input_ids": [first_token(number), *rest], "sampling_params": params},
        }
        for number in range(count)
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def multipart(fields: Mapping[str, str], name: str, data: bytes) -> bytes:
    """A form with a file, as a browser would send it."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return b"".join([*parts, head.encode(), data, f"\r\n--{BOUNDARY}--\r\n".encode()])


def upload(base: str, data: bytes) -> Any:
    """POST /v1/files."""
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return _post(f"{base}/v1/files", multipart({"purpose": "batch"}, "lines.jsonl", data), kind)


def run(base: str, file_id: str) -> Any:
    """Start a batch; the object that says that it ended."""
    ask = {"input_file_id": file_id, "endpoint": "/generate", "completion_window": "24h"}
    batch = _post(f"{base}/v1/batches", json.dumps(ask).encode(), "application/json")
    while batch["status"] not in ENDED:
        time.sleep(0.05)
        batch = get_json(f"{base}/v1/batches/{batch['id']}")
    return batch


def content(base: str, file_id: str | None) -> bytes:
    """A file's content; nothing where there is no file."""
    if file_id is None:
        return b""
    with urllib.request.urlopen(f"{base}/v1/files/{file_id}/content", timeout=60) as answer:
        data: bytes = answer.read()
    return data


def check(batch: Mapping[str, Any], output: bytes, lines: int) -> int:
    """How many lines lack their one right answer in the output, or are there too often."""
    answered: dict[str, int] = {}
    for line in output.splitlines():
        answer = json.loads(line)
        number = int(answer["custom_id"].removeprefix("line-"))
        body = answer["response"]["body"]
        first = first_token(number) + PROMPT_TOKENS
        is_right = body["output_ids"] == list(range(first, first + NEW_TOKENS))
        answered[answer["custom_id"]] = answered.get(answer["custom_id"], 0) + (1 if is_right else 2)
    counts = batch["request_counts"]
    miscounted: int = abs(lines - counts["completed"]) + counts["failed"]
    return sum(answered.get(f"line-{number}") != 1 for number in range(lines)) + miscounted


def _post(url: str, data: bytes, kind: str) -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)
