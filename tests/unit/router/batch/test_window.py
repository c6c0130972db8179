"""How many lines may be on their way."""

from seer_sgl.router.batch.window import Window


def fill(window: Window, batch: str, size: int = 1) -> int:
    count = 0
    while window.fits(batch, size):
        window.take(batch, size)
        count += 1
        assert count < 10_000
    return count


def test_one_batch_has_all_of_it() -> None:
    window = Window(lines=100, input_bytes=1000)
    window.join("a")
    assert fill(window, "a") == 100
    window.give("a", 1)
    assert fill(window, "a") == 1


def test_bytes_count_too_but_one_line_always_fits() -> None:
    window = Window(lines=100, input_bytes=1000)
    window.join("a")
    assert fill(window, "a", 300) == 3
    window.leave("a")
    window.join("a")
    assert fill(window, "a", 5000) == 1


def test_a_second_batch_gets_its_half_as_lines_of_the_first_end() -> None:
    window = Window(lines=100, input_bytes=1000)
    window.join("a")
    fill(window, "a")
    window.join("b")
    assert fill(window, "b") == 1
    for _ in range(60):
        window.give("a", 1)
        assert not window.fits("a", 1) or window._held["a"].lines < 50
    assert fill(window, "b") == 49
    assert fill(window, "a") == 10
    window.leave("b")
    assert fill(window, "a") == 50
