"""Text of a stream over chunk edges, with a tokenizer of single bytes and a model of SGLang's own text.

Characters of up to four bytes lie across every edge. Whatever is shown must be the beginning of what is
answered in the end, and must not stay behind by more than what SGLang itself keeps back.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.router.transcript import Transcript
from seer_sgl.types import EngineId

HALF = "\ufffd"
CONTEXT = 5
PROMPT = list(b"prompt:")


def decode(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


class OwnText:
    """What a server shows of one chunk: text follows on its context, whole characters only."""

    def __init__(self, held: list[int]) -> None:
        self.ids = held[-CONTEXT:]
        self.since, self.read = 0, len(self.ids)
        self.settled = ""

    def take(self, token: int) -> str:
        self.ids.append(token)
        new = self._new()
        if new and not new.endswith(HALF):
            self.settled, self.since, self.read = self.settled + new, self.read, len(self.ids)
            return self.settled
        return self.settled + new[: new.rfind(" ") + 1]

    def end(self) -> str:
        return self.settled + self._new()

    def _new(self) -> str:
        before = decode(self.ids[self.since : self.read])
        return decode(self.ids[self.since :])[len(before) :]


def detokenized(transcript: Transcript) -> list[str]:
    return [decode(ids) for ids in transcript.text_request()]


class Streaming:
    """One request, as its client sees it."""

    def __init__(self, output: list[int]) -> None:
        self.output = output
        self.transcript = Transcript("r", PROMPT)
        self.shown = [""]
        self.behind: list[int] = []

    def chunk(self, tokens: int, together: int) -> None:
        """Run one chunk, of which so many tokens are told at once."""
        transcript, done = self.transcript, self.transcript.ended_tokens
        own, text, untold = OwnText(transcript.held_ids), "", list[int]()
        ids = self.output[done : done + tokens]
        for token in ids:
            untold.append(token)
            now = own.take(token)
            if len(untold) < together:
                continue
            keep = len(text) if now.startswith(text) else 0
            transcript.progress(keep, now[keep:], untold, {})
            text, untold = now, []
            self.look()
        meta = {"finish_reason": {"type": "length", "length": len(ids)}}
        answer = {"text": own.end(), "output_ids": ids, "meta_info": meta}
        transcript.add(answer, EngineId("a"), None)

    def look(self) -> None:
        """As the router does for each event."""
        transcript = self.transcript
        if not transcript.text_known:
            transcript.take_text(detokenized(transcript), transcript.text_mark)
        text = transcript.so_far()["text"]
        assert text.startswith(self.shown[-1])
        self.shown.append(text)
        whole = decode(transcript.output_ids).rstrip(HALF)
        assert whole.startswith(text)
        if decode(transcript.output_ids) == whole:
            assert text == whole, "a whole character is kept back"


texts = st.text(alphabet="ab é漢😀\n\ufffd", min_size=1, max_size=25)
cuts = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3)), min_size=1, max_size=40)


@settings(max_examples=500, deadline=None)
@given(text=texts, cuts=cuts, half=st.integers(0, 3))
def test_what_is_shown_is_the_beginning_of_the_answer(
    text: str, cuts: list[tuple[int, int]], half: int
) -> None:
    output = list(text.encode())
    stream = Streaming(output[: max(1, len(output) - half)])
    left = len(stream.output)
    for tokens, together in [*cuts, (left, 1)]:
        if left > 0:
            stream.chunk(min(tokens, left), together)
            left -= min(tokens, left)
    transcript = stream.transcript
    texts = None if transcript.text_is_whole else detokenized(transcript)
    answer = transcript.answer(0.0, texts)
    assert answer["text"] == decode(stream.output)
    assert answer["output_ids"] == stream.output
    assert answer["text"].startswith(stream.shown[-1])
