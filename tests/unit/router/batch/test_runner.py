"""A batch from its file to its end: statuses, counts and files, whatever comes between."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from seer_sgl.errors import RequestError
from seer_sgl.router.batch.flight import TRIES
from seer_sgl.router.batch.objects import ExpiresAfter
from seer_sgl.router.batch.window import Window
from tests.unit.router.batch.conftest import START_S, Desk, desk, line, lines, numbers, until
from tests.unit.router.conftest import run


def test_every_line_is_answered_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.ended(await it.batch(lines(300), metadata={"a": "b"}))
            output = await it.content(batch.output_file_id)
            file = await it.service.file(batch.output_file_id or "")

        assert (batch.status, batch.error_file_id, batch.metadata) == ("completed", None, {"a": "b"})
        assert batch.request_counts.total == 300
        assert numbers(output) == sorted(it.answers.asked) == list(range(300))
        assert len(set(it.answers.rids)) == 300
        times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        assert times == (START_S,) * 4
        assert batch.expires_at == START_S + 3600
        usage = batch.usage
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (900, 600, 1500)
        assert usage.input_tokens_details.cached_tokens == 300
        assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
        by_id = {each["custom_id"]: each for each in output}
        assert by_id["c7"]["id"] == f"batch_req_{batch.id.removeprefix('batch_')}_8"
        assert by_id["c7"]["response"]["status_code"] == 200
        assert by_id["c7"]["response"]["body"]["n"] == 7
        assert by_id["c7"]["error"] is None
        assert sorted(path.name for path in (tmp_path / "files").iterdir()) == sorted(
            [batch.input_file_id, file.id]
        )

    run(scenario())


def test_lines_that_fail_go_to_the_error_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        content = b"".join(line(n, status=400 if n % 2 else 200) for n in range(10))
        async with desk(tmp_path) as it:
            batch = await it.ended(await it.batch(content))
            errors = await it.content(batch.error_file_id)
            every = await it.ended(await it.batch(lines(3, status=404)))

        assert batch.status == every.status == "completed"
        assert (batch.request_counts.completed, batch.request_counts.failed) == (5, 5)
        assert numbers(errors) == [1, 3, 5, 7, 9]
        assert {(each["response"]["status_code"], each["error"]) for each in errors} == {(400, None)}
        assert batch.usage.input_tokens == 15
        assert every.output_file_id is None
        assert every.error_file_id is not None

    run(scenario())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(tmp_path: Path, status: int) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.ended(await it.batch(line(0, status=status)))
        assert batch.request_counts.failed == 1
        assert it.answers.asked == [0] * TRIES[status]
        assert len(set(it.answers.rids)) == TRIES[status]

    run(scenario())


def test_a_bug_in_an_answer_costs_its_line_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.ended(
                await it.batch(
                    b'{"custom_id":"c0","method":"POST","url":"/generate","body":{}}\n' + line(1)
                )
            )
            errors = await it.content(batch.error_file_id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 1)
        assert errors[0]["response"]["status_code"] == 500
        assert "KeyError" in errors[0]["response"]["body"]["error"]["message"]

    run(scenario())
    assert "met a bug" in caplog.text
    caplog.clear()


WRONG: dict[str, tuple[bytes, str, int | None]] = {
    "bad JSON": (line(0) + b"{nope\n", "invalid_json_line", 2),
    "no object": (line(0) + b"[]\n", "invalid_type", 2),
    "missing key": (b'{"custom_id":"a","method":"POST","url":"/generate"}',
                    "missing_required_parameter", 1),
    "duplicate": (line(0) + b"\n" + line(0), "duplicate_custom_id", 3),
    "method": (line(0).replace(b"POST", b"GET"), "invalid_method", 1),
    "url": (line(0).replace(b"/generate", b"/v1/completions"), "invalid_url", 1),
    "stream": (line(0, stream=True), "stream_not_supported", 1),
    "empty": (b"", "empty_file", None),
    "blank": (b"\n \n\r\n", "empty_file", None),
    "not UTF-8": (line(0) + b'{"custom_id":"\xff"}\n', "invalid_encoding", 2),
    "too many": (lines(50_001), "too_many_lines", 50_001),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_an_invalid_input_fails_as_a_whole(tmp_path: Path, what: str) -> None:
    content, code, number = WRONG[what]

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.ended(await it.batch(content))
            await asyncio.sleep(0.02)

        assert (batch.status, batch.failed_at, it.answers.asked) == ("failed", START_S, [])
        assert batch.errors is not None
        assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
        assert (batch.output_file_id, batch.error_file_id) == (None, None)

    run(scenario())


def test_unknown_models_fail_and_nobody_guesses_before_an_engine_is_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        def content(model: str) -> bytes:
            url = {"url": "/v1/completions"}
            every = [{**msgspec.json.decode(line(n, model=model)), **url} for n in range(2)]
            return b"\n".join(map(msgspec.json.encode, every))

        async with desk(tmp_path) as it:
            it.answers.models = None
            good = await it.batch(content("served"), endpoint="/v1/completions")
            await asyncio.sleep(0.05)
            assert good.status == "validating"
            it.answers.models = {"served"}
            assert (await it.ended(good)).status == "completed"
            assert good.model == "served"
            bad = await it.ended(await it.batch(content("other"), endpoint="/v1/completions"))
        assert bad.errors is not None
        assert [(e.code, e.param) for e in bad.errors.data] == [("model_not_found", "body.model")] * 2

    run(scenario())


def test_a_cancelled_batch_keeps_what_has_finished(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.batch(lines(40) + b"".join(line(n, wait=True) for n in range(40, 90)))
            await until(lambda: batch.request_counts.completed == 40)
            assert (await it.service.cancel(batch.id)).status == "cancelling"
            await it.ended(batch)
            output, errors = [
                await it.content(file) for file in (batch.output_file_id, batch.error_file_id)
            ]
            assert (await it.service.cancel(batch.id)).status == "cancelled"

        assert batch.cancelling_at == batch.cancelled_at == START_S
        assert (numbers(output), numbers(errors)) == (list(range(40)), list(range(40, 90)))
        assert {(e["response"], e["error"]["code"]) for e in errors} == {(None, "batch_cancelled")}
        assert batch.request_counts.total == 90

    run(scenario())


def test_a_batch_that_waits_for_its_model_can_be_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            it.answers.models = None
            content = line(0).replace(b"/generate", b"/v1/completions")
            batch = await it.batch(content, endpoint="/v1/completions")
            await asyncio.sleep(0.02)
            await it.service.cancel(batch.id)
            await it.ended(batch)
        assert (batch.status, it.answers.asked) == ("cancelled", [])
        assert batch.request_counts.failed == batch.request_counts.total == 1

    run(scenario())


@pytest.mark.parametrize("how", ["completed", "failed"])
def test_what_has_ended_cannot_be_cancelled(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.ended(await it.batch(lines(1) if how == "completed" else b"{"))
            with pytest.raises(RequestError) as caught:
                await it.service.cancel(batch.id)
        assert (batch.status, caught.value.status) == (how, 409)

    run(scenario())


def test_a_batch_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.batch(lines(5) + line(5, wait=True), completion_window="30s")
            await until(lambda: batch.request_counts.completed == 5)
            it.now_s += 29
            await asyncio.sleep(0.05)
            assert batch.status == "in_progress"
            it.now_s += 1
            await it.ended(batch)
            errors = await it.content(batch.error_file_id)
        assert (batch.status, batch.expired_at) == ("expired", START_S + 30)
        assert [each["error"]["code"] for each in errors] == ["batch_expired"]

    run(scenario())


def test_a_batch_that_expired_while_no_router_ran_runs_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.batch(lines(5) + line(5, wait=True), completion_window="30s")
            await until(lambda: batch.request_counts.completed == 5)
        later = Desk(tmp_path)
        later.now_s += 31
        await later.start()
        after = await later.ended(await later.service.batch(batch.id))
        await later.service.stop()
        assert (after.status, later.answers.asked) == ("expired", [])
        assert (after.request_counts.completed, after.request_counts.failed) == (5, 1)

    run(scenario())


def test_outputs_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.batch.service.SWEEP_TICKS", 1)

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            asked = ExpiresAfter(3600)
            batch = await it.ended(await it.batch(lines(1), output_expires_after=asked))
            file_id = batch.output_file_id or ""
            file, path = await it.service.content(file_id)
            assert file.expires_at == START_S + 3600
            it.now_s += 3600
            with pytest.raises(RequestError) as caught:
                await it.service.file(file_id)
            assert caught.value.status == 404
            assert (await it.service.files(None, "", True, 10)).data[0].id == batch.input_file_id
            await until(lambda: not path.exists())

    run(scenario())


# ---- room ----


@pytest.mark.parametrize("room", [0, 1, 1000, 5003])
def test_a_full_disk_pauses_and_loses_nothing(tmp_path: Path, room: int) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            it.disk.room = room
            batch = await it.batch(lines(400))
            await until(lambda: batch.seer.paused)
            await asyncio.sleep(0.05)
            asked, counts = len(it.answers.asked), batch.request_counts.completed
            await asyncio.sleep(0.05)

            assert batch.status == "in_progress"
            assert batch.seer.paused == "cannot write the output: No space left on device"
            assert len(it.answers.asked) == asked < counts + 200  # what was on its way by then
            path = next(p for p in (tmp_path / "files").iterdir() if p.name != batch.input_file_id
                        and (p.stat().st_size or not room))  # fmt: skip
            assert path.read_bytes().count(b"\n") == counts

            it.disk.room = None
            await it.ended(batch)
            assert numbers(await it.content(batch.output_file_id)) == list(range(400))
        assert batch.seer.paused is None
        assert sorted(it.answers.asked) == list(range(400))

    run(scenario())


def test_a_slow_batch_holds_no_other_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path, Window(lines=10)) as it:
            slow = await it.batch(lines(100, wait=True))
            await until(lambda: len(it.answers.asked) == 10)
            quick = await it.ended(await it.batch(lines(50)))
            assert (quick.status, slow.request_counts.completed) == ("completed", 0)
            assert len(it.answers.asked) == 60
            it.answers.gate.set()
            assert (await it.ended(slow)).request_counts.completed == 100

    run(scenario())


def test_answers_of_one_turn_are_written_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with desk(tmp_path) as it:
            batch = await it.batch(lines(100, wait=True))
            await until(lambda: len(it.answers.asked) == 100)
            it.answers.gate.set()
            await it.ended(batch)
        assert it.disk.writes <= 3

    run(scenario())
