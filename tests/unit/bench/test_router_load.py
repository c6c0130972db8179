"""How the router benchmark schedules, counts and checks."""

import json

import pytest

from bench.load_checks import Bodies, Schedule, StreamCheck, first_token, percentile
from bench.mock_answers import END_OF_STREAM, Ask, Requests, Sampling, answer, decode_ask

PROMPT, NEW = 4, 3


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.99, 7.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 1001)], 0.99, 990.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
    ],
)
def test_a_percentile_is_a_value_that_was_seen(
    values: list[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


def test_the_open_loop_does_not_wait_for_answers() -> None:
    schedule = Schedule(began_s=10.0, rate=500.0)
    assert [schedule.due_s(number) for number in (0, 1, 500)] == [10.0, 10.002, 11.0]
    assert schedule.due_until(9.9) == 0
    assert schedule.due_until(10.0) == 1
    # A generator that was held up for a second owes all that fell due meanwhile, each at its own time.
    assert schedule.due_until(11.0) == 501


def test_each_request_is_due_when_its_timer_fires() -> None:
    schedule = Schedule(began_s=1000.1, rate=300.0)
    for number in range(3000):
        assert schedule.due_until(schedule.due_s(number)) == number + 1


def stream(number: int = 0, done: tuple[int, ...] = (1, 2, 3)) -> list[bytes]:
    ask = Ask([first_token(number), *range(PROMPT - 1)], Sampling(NEW), "x", stream=True)
    return [b"data: %b\n\n" % answer(ask, count) for count in done] + [END_OF_STREAM]


def checked(events: list[bytes], number: int = 0, cut: int | None = None) -> StreamCheck:
    check = StreamCheck(number, PROMPT, NEW)
    data = b"".join(events)
    for start in range(0, len(data), cut or len(data)):
        check.feed(data[start : start + (cut or len(data))])
    return check


@pytest.mark.parametrize("cut", [None, 1, 7, 64])
def test_a_whole_stream_is_whole_however_it_is_cut(cut: int | None) -> None:
    check = checked(stream(), cut=cut)
    assert check.is_whole
    assert (check.seen, check.events, check.merged, check.lost) == (3, 3, 0, 0)


def test_tokens_that_come_together_are_not_lost() -> None:
    check = checked(stream(done=(1, 3)))
    assert check.is_whole
    assert check.merged == 1


def test_a_last_event_may_only_say_why_it_ended() -> None:
    first, second, last, end = stream()
    unfinished = json.loads(last.removeprefix(b"data: "))
    unfinished["meta_info"]["finish_reason"] = None
    all_tokens = b"data: %b\n\n" % json.dumps(unfinished).encode()
    assert checked([first, second, all_tokens, last, end]).is_whole


def test_what_is_missing_is_lost() -> None:
    first, second, last, end = stream()
    cut_off = checked([first, second])
    assert not cut_off.is_whole
    assert cut_off.lost == 1
    without_end = checked([first, second, last])
    assert not without_end.is_whole
    assert without_end.lost == 0
    assert not checked([first, second, end]).is_whole
    assert StreamCheck(0, PROMPT, NEW).lost == NEW


def test_what_comes_twice_is_counted() -> None:
    first, second, last, end = stream()
    again = checked([first, second, second, last, end])
    assert not again.is_whole
    assert (again.duplicated, again.disordered) == (1, 0)


def test_what_is_out_of_order_is_counted() -> None:
    first, second, last, end = stream()
    assert checked([second, first, last, end]).disordered == 1
    assert checked([first, second, last, last, end]).disordered == 1
    after_the_end = checked([first, second, last, end, second])
    assert not after_the_end.is_whole
    assert after_the_end.disordered == 1


def test_tokens_of_another_stream_are_wrong() -> None:
    check = checked(stream(number=1), number=0)
    assert not check.is_whole
    assert check.wrong == 3
    assert checked([b"data: nonsense\n\n"]).wrong == 1


def test_requests_are_read_however_they_are_cut() -> None:
    bodies = Bodies("localhost:1", PROMPT, NEW, stream=False)
    sent = [bodies.request(number) for number in (0, 1, 899_999)]
    data = b"".join(sent) + b"GET /v1/loads?include=core HTTP/1.1\r\nHost: x\r\n\r\n"
    for cut in (1, 10, len(data)):
        requests = Requests()
        found = [
            each
            for start in range(0, len(data), cut)
            for each in requests.feed(data[start : start + cut])
        ]
        assert [(method, target) for method, target, _ in found] == [
            ("POST", "/generate"),
            ("POST", "/generate"),
            ("POST", "/generate"),
            ("GET", "/v1/loads?include=core"),
        ]
        asks = [decode_ask(body) for _, _, body in found[:3]]
        assert [ask.input_ids[0] for ask in asks] == [100_000, 100_001, 999_999]
        assert all(len(ask.input_ids) == PROMPT and ask.new_tokens == NEW for ask in asks)
        assert found[3][2] == b""


def test_the_right_answer_is_told_from_others() -> None:
    bodies = Bodies("localhost:1", PROMPT, NEW, stream=False)
    ask = decode_ask(bodies.request(5).partition(b"\r\n\r\n")[2])
    whole = answer(ask, NEW)
    assert json.loads(whole)["output_ids"] == [100_009, 100_010, 100_011]
    assert len(json.loads(whole)["meta_info"]["output_token_logprobs"]) == NEW
    assert bodies.is_answer(5, 200, whole)
    assert not bodies.is_answer(6, 200, whole)
    assert not bodies.is_answer(5, 503, whole)
    assert not bodies.is_answer(5, 200, answer(ask, NEW - 1))
