"""What an unmodified `openai` client does with files and batches, against any router."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import openai
import pytest
from openai.types import Batch

PATIENCE_S = 240.0
ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, endpoint: str, body: dict[str, Any]) -> bytes:
    whole = {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}
    return msgspec.json.encode(whole) + b"\n"


class Desk:
    """A client, and what belongs together."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.client = client

    def upload(self, content: bytes, name: str = "input.jsonl", **more: Any) -> openai.types.FileObject:
        return self.client.files.create(file=(name, content), purpose="batch", **more)

    def create(self, input_id: str, endpoint: str, **more: Any) -> Batch:
        asked: dict[str, Any] = {"completion_window": "24h", "endpoint": endpoint, **more}
        return self.client.batches.create(input_file_id=input_id, **asked)

    def until(self, batch: Batch, holds: Callable[[Batch], bool]) -> Batch:
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds(batch):
            assert time.monotonic() < deadline_s, batch
            time.sleep(0.05)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def ended(self, batch: Batch) -> Batch:
        return self.until(batch, lambda it: it.status in ENDED)

    def lines(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """A file's lines by their `custom_id`; none where there is no file."""
        if file_id is None:
            return {}
        content = self.client.files.content(file_id).read()
        found = [msgspec.json.decode(each) for each in content.splitlines()]
        by_id = {each["custom_id"]: each for each in found}
        assert len(by_id) == len(found)
        return by_id


def whole_walk(client: openai.OpenAI, bodies: Sequence[dict[str, Any]], endless: dict[str, Any]) -> None:
    """Upload, create, poll, list with paging, download, cancel, delete.

    Args:
        bodies: for `/generate`, all of them good.
        endless: one that takes long; it gets an `rid`.
    """
    desk = Desk(client)
    content = b"".join(line(f"c{n}", "/generate", body) for n, body in enumerate(bodies))
    file = desk.upload(content, "../../x/input.jsonl")
    assert (file.filename, file.bytes, file.purpose) == ("input.jsonl", len(content), "batch")
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content

    batch = desk.create(file.id, "/generate", metadata={"of": "the test"})
    assert batch.status == "validating"
    batch = desk.ended(batch)
    assert batch.request_counts is not None
    assert batch.usage is not None
    assert (batch.status, batch.errors, batch.error_file_id) == ("completed", None, None)
    assert batch.request_counts.total == batch.request_counts.completed == len(bodies)
    assert batch.metadata == {"of": "the test"}
    output = desk.lines(batch.output_file_id)
    assert set(output) == {f"c{n}" for n in range(len(bodies))}
    answers = [each["response"]["body"] for each in output.values()]
    tokens = sum(answer["meta_info"]["completion_tokens"] for answer in answers)
    assert batch.usage.output_tokens == tokens == sum(len(a["output_ids"]) for a in answers)

    failed = desk.ended(desk.create(desk.upload(content + b"{nope\n").id, "/generate"))
    assert (failed.status, failed.output_file_id) == ("failed", None)
    assert failed.errors is not None
    assert failed.errors.data is not None
    error = failed.errors.data[0]
    assert (error.code, error.line) == ("invalid_json_line", len(bodies) + 1)

    cancelled = _cancel(desk, endless)
    _lists(desk, [cancelled, failed, batch])
    _deletes(desk, [cancelled, failed, batch])


def _cancel(desk: Desk, endless: dict[str, Any]) -> Batch:
    content = b"".join(line(f"e{n}", "/generate", {**endless, "rid": f"e{n}"}) for n in range(50))
    file = desk.upload(content, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    batch = desk.create(file.id, "/generate")
    batch = desk.until(batch, lambda it: it.status == "in_progress")
    with pytest.raises(openai.ConflictError):
        desk.client.with_options(max_retries=0).files.delete(file.id)
    assert desk.client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = desk.ended(batch)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    output, errors = desk.lines(batch.output_file_id), desk.lines(batch.error_file_id)
    assert len(output) == batch.request_counts.completed < 50
    assert len(errors) == batch.request_counts.failed
    assert set(output) | set(errors) == {f"e{n}" for n in range(50)}
    assert {each["error"]["code"] for each in errors.values()} == {"batch_cancelled"}
    return batch


def _lists(desk: Desk, newest_first: list[Batch]) -> None:
    client = desk.client
    assert [each.id for each in client.batches.list(limit=1)][: len(newest_first)] == [
        each.id for each in newest_first
    ]
    page = client.batches.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    newest = [each.id for each in client.files.list(limit=2, purpose="batch")]
    assert len(newest) >= 3
    assert newest == sorted(newest, reverse=True)
    assert [each.id for each in client.files.list(order="asc", purpose="batch")] == newest[::-1]
    outputs = [each.id for each in client.files.list(purpose="batch_output")]
    assert newest_first[-1].output_file_id in outputs
    assert not set(outputs) & set(newest)


def _deletes(desk: Desk, batches: list[Batch]) -> None:
    client = desk.client
    for file in client.files.list(limit=1):  # pages go on after what is gone
        assert client.files.delete(file.id).deleted
    assert client.files.list().data == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(batches[0].input_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(batches[0].input_file_id)
    with pytest.raises(openai.NotFoundError):
        desk.create(batches[0].input_file_id, "/generate")
    with pytest.raises(openai.BadRequestError) as caught:
        desk.create(desk.upload(b"{}").id, "/generate", completion_window="soon")
    assert caught.value.param == "completion_window"
