"""The batch file of the router benchmark, and how its output is judged."""

import email
import json
from typing import Any

from bench.batches import BOUNDARY, NEW_TOKENS, PROMPT_TOKENS, check, input_lines, multipart

LINES = 5


def output(numbers: list[int], tokens: int = NEW_TOKENS) -> bytes:
    asked = [json.loads(line) for line in input_lines(LINES).splitlines()]
    lines = []
    for number in numbers:
        first = asked[number]["body"]["input_ids"][0] + PROMPT_TOKENS
        body = {"output_ids": list(range(first, first + tokens))}
        response = {"status_code": 200, "body": body}
        lines.append({"custom_id": asked[number]["custom_id"], "response": response, "error": None})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def batch(completed: int = LINES, failed: int = 0) -> dict[str, Any]:
    return {"request_counts": {"total": LINES, "completed": completed, "failed": failed}}


def test_every_line_differs() -> None:
    asked = [json.loads(line) for line in input_lines(LINES).splitlines()]
    assert len({line["custom_id"] for line in asked}) == LINES
    assert len({tuple(line["body"]["input_ids"]) for line in asked}) == LINES
    assert {len(line["body"]["input_ids"]) for line in asked} == {PROMPT_TOKENS}


def test_each_line_must_be_answered_once_and_right() -> None:
    assert check(batch(), output([4, 0, 2, 1, 3]), LINES) == 0
    assert check(batch(), output([0, 1, 2, 3]), LINES) == 1
    assert check(batch(), output([0, 1, 2, 3, 4, 4]), LINES) == 1
    assert check(batch(), output([0, 1, 2, 3, 4], tokens=NEW_TOKENS - 1), LINES) == LINES
    assert check(batch(), b"", LINES) == LINES


def test_counts_must_agree_with_the_output() -> None:
    whole = output([0, 1, 2, 3, 4])
    assert check(batch(completed=4, failed=1), whole, LINES) == 2
    assert check(batch(completed=3), whole, LINES) == 2


def test_the_form_is_multipart() -> None:
    form = multipart({"purpose": "batch"}, "lines.jsonl", b"a\r\nb\n")
    head = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
    parts: Any = email.message_from_bytes(head + form).get_payload()
    purpose, file = parts
    assert purpose.get_param("name", header="content-disposition") == "purpose"
    assert purpose.get_payload(decode=True) == b"batch"
    assert file.get_filename() == "lines.jsonl"
    assert file.get_payload(decode=True) == b"a\r\nb\n"
