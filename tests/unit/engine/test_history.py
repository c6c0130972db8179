"""What an agent tells of the weights of its server."""

import pytest

from seer_sgl.engine.history import Told, WeightHistory, told_of

DISK, NAME = "/update_weights_from_disk", "/update_weight_version"
PART, CHECKER = "/update_weights_from_distributed", "/weights_checker"
LOAD, UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"


def told(*calls: tuple[str, int]) -> str:
    history = WeightHistory()
    for call_id, (target, status) in enumerate(calls):
        history.asked(call_id, target, b"{}")
        history.answered(call_id, status)
    return history.told()


def test_a_server_that_nobody_has_changed_has_none() -> None:
    assert told() == told(("/generate", 200), ("/flush_cache", 200), ("/pause_generation", 200)) == ""


def test_the_same_calls_with_the_same_answers_are_the_same_history() -> None:
    assert told((DISK, 200), (NAME, 200)) == told((DISK, 200), ("/model_info", 200), (NAME, 200)) != ""


@pytest.mark.parametrize(
    "other",
    [
        [(DISK, 400), (NAME, 200)],
        [(DISK, 200)],
        [(NAME, 200), (DISK, 200)],
        [(DISK, 200), (DISK, 200), (NAME, 200)],
    ],
)
def test_other_answers_or_another_order_are_another_one(other: list[tuple[str, int]]) -> None:
    assert told((DISK, 200), (NAME, 200)) != told(*other)


def test_a_call_that_is_not_answered_yet_counts_as_broken() -> None:
    history = WeightHistory()
    history.asked(1, DISK, b"{}")
    before = history.told()
    history.answered(1, 200)
    assert before == history.told() == told((DISK, 0))


@pytest.mark.parametrize(("action", "counts"), [("checksum", False), ("reset_tensors", True)])
def test_looking_at_weights_does_not_change_them(action: str, counts: bool) -> None:
    history = WeightHistory()
    history.asked(1, "/weights_checker", b'{"action": "%s"}' % action.encode())
    history.answered(1, 200)
    assert bool(history.told()) == counts


@pytest.mark.parametrize(
    ("calls", "unsure"),
    [
        ([(DISK, 200)], False),
        ([(DISK, 400)], True),
        ([(DISK, 404)], False),
        ([(PART, 0)], True),
        ([(PART, 500), (PART, 200), (NAME, 200)], True),
        ([(PART, 500), (DISK, 200)], False),
        ([(PART, 200), ("/end_weight_update", 500)], True),
        ([(NAME, 400)], False),
        ([(CHECKER, 200)], True),
        ([(CHECKER, 200), ("/update_weights_from_ipc", 200)], False),
    ],
)
def test_after_a_failure_only_a_whole_update_makes_sure(
    calls: list[tuple[str, int]], unsure: bool
) -> None:
    assert told_of(told(*calls)).unsure == unsure


def test_an_update_of_the_draft_alone_makes_nothing_sure() -> None:
    history = WeightHistory()
    for call_id, (body, status) in enumerate([(b"{}", 500), (b'{"selector": "draft"}', 200)]):
        history.asked(call_id, DISK, body)
        history.answered(call_id, status)
    assert told_of(history.told()).unsure


def after(*calls: tuple[str, str, int]) -> Told:
    history = WeightHistory()
    for call_id, (target, name, status) in enumerate(calls):
        history.asked(
            call_id, target, b'{"lora_name": "%s", "lora_path": "/%s"}' % ((name.encode(),) * 2)
        )
        history.answered(call_id, status)
    return told_of(history.told())


def test_adapters_are_no_weights() -> None:
    both = after((LOAD, "x", 200), (LOAD, "y", 200))
    assert (both.weights, both.unsure, both.names) == ("", False, ("x", "y"))
    assert both.adapters != after((LOAD, "y", 200), (LOAD, "x", 200)).adapters
    assert after((LOAD, "x", 200), (UNLOAD, "x", 200)) == Told()
    assert after((LOAD, "x", 400), (UNLOAD, "x", 400)) == Told()
    assert after((LOAD, "x", 0)).names == after((LOAD, "x", 200), (UNLOAD, "x", 500)).names == ("x",)


def asked(body: bytes) -> str:
    history = WeightHistory()
    history.asked(1, DISK, body)
    history.answered(1, 200)
    return history.told()


def test_weights_of_other_folders_are_another_history() -> None:
    here = b'{"model_path": "/a", "flush_cache": true}'
    assert asked(here) == asked(b'{"flush_cache":false,"model_path":"/a"}')
    bodies = [here, b'{"model_path": "/b"}', b'{"model_path": "/a", "weight_version": "2"}', b"[1]"]
    assert len({asked(body) for body in bodies}) == len(bodies)


def test_what_is_no_history_is_at_least_told_from_others() -> None:
    assert told_of("9f").weights == "9f"


def test_what_never_went_to_the_server_is_no_history() -> None:
    history = WeightHistory()
    for call_id, path in enumerate((DISK, PART, LOAD, UNLOAD)):
        history.asked(call_id, path, b"{}")
        history.refused(call_id)
        history.answered(call_id, 400)
    assert history.told() == ""
