"""What a store's metrics port may say, and what batches of removals come to; no store is needed."""

import socket
import threading

import pytest

from seer_sgl.kv.client import KEYS_AT_ONCE, Room, StoreClient, room
from seer_sgl.kv.ledger import Outcome

METRICS = "master_allocated_bytes 5e9\nmaster_total_capacity_bytes 1e10\n"
OK = "HTTP/1.1 200 OK\r\ncontent-length: "


def said(answer: str) -> Room | None:
    """What is made of an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        found = room(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    return found


def test_the_room_is_what_the_master_says() -> None:
    assert said(f"{OK}{len(METRICS)}\r\n\r\n{METRICS}") == Room(5_000_000_000, 10_000_000_000)


@pytest.mark.parametrize(
    "answer",
    [
        f"{OK}{len(METRICS) + 9}\r\n\r\n{METRICS}",
        f"{OK}12\r\n\r\nmaster_a b\r\n",
        f"{OK}24\r\n\r\nmaster_allocated_bytes 5",
        f"{OK}58\r\n\r\nmaster_allocated_bytes inf\nmaster_total_capacity_bytes 9",
        "no HTTP\r\n\r\n",
        "",
    ],
    ids=["cut off", "no number", "half of it", "infinite", "no HTTP", "nothing"],
)
def test_what_cannot_be_read_is_no_room(answer: str) -> None:
    assert said(answer) is None


class FakeStore:
    """Answers with this code, and counts calls."""

    def __init__(self, code: int) -> None:
        self.code, self.calls = code, 0

    def batch_remove(self, keys: list[str]) -> list[int]:
        self.calls += 1
        return [self.code] * len(keys)


@pytest.mark.parametrize(
    ("code", "calls", "outcome"),
    [(0, 3, Outcome.REMOVED), (-704, 3, Outcome.ABSENT), (-900, 1, Outcome.FAILED)],
)
def test_a_store_that_fails_is_not_asked_on(code: int, calls: int, outcome: Outcome) -> None:
    client = StoreClient.__new__(StoreClient)
    client._store = FakeStore(code)
    assert client.release(["key"] * (2 * KEYS_AT_ONCE + 1)) == [outcome] * (2 * KEYS_AT_ONCE + 1)
    assert client._store.calls == calls
