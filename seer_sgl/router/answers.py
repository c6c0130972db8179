"""What clients are told of live samples: whole answers, and streams of them."""

import asyncio
from collections.abc import Callable
from typing import Any

from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.live import Call, Live
from seer_sgl.router.roster import Roster

AT_ONCE = 128
"""Texts of one call that engines are asked for at the same time."""


class Answers:
    """Makes answers, asking engines for text where chunks' own texts do not do."""

    def __init__(self, calls: EngineCalls, roster: Roster) -> None:
        self._calls, self._roster = calls, roster

    async def whole(self, lives: list[Live]) -> list[dict[str, Any]]:
        """Of samples that have ended."""
        missing = [live for live in lives if live.answer is None and live.text_is_missing]
        for start in range(0, len(missing), AT_ONCE):
            await asyncio.gather(*map(self.of, missing[start : start + AT_ONCE]))
        return [live.answer or self._finished(live, None) for live in lives]

    async def of(self, live: Live) -> dict[str, Any]:
        """Of one sample that has ended; made once, whoever asks."""
        if live.answer is None and live.text_is_missing:
            texts = await self._texts_of(live)
            return live.answer or self._finished(live, texts)
        return live.answer or self._finished(live, None)

    async def so_far(self, live: Live) -> dict[str, Any] | None:
        """Of a sample that runs; None where it has ended meanwhile."""
        transcript = live.transcript
        if not transcript.text_known:
            mark = transcript.text_mark
            texts = await self._texts_of(live)
            if live.state == "done":
                return None
            transcript.take_text(texts, mark)
        return transcript.so_far()

    def _finished(self, live: Live, texts: list[str] | None) -> dict[str, Any]:
        members = self._roster.members.values()
        member = next((each for each in members if not each.quarantine), None)
        live.answer = live.finished(texts, member.card.weight_version if member else "default")
        return live.answer

    async def _texts_of(self, live: Live) -> list[str]:
        skip = live.sample.sampling.get("skip_special_tokens")
        body = {
            "tokens": live.transcript.text_request(),
            "skip_special_tokens": True if skip is None else skip,
        }
        texts: list[str] = (await self._calls.call("/detokenize", body))["text"]
        return texts


class SampleStream:
    """Iterates over (index, answer so far). Closed when it ends, fails, is cancelled or forgotten.

    Args:
        close: takes the call when nobody waits for it any more.
    """

    def __init__(self, call: Call, answers: Answers, close: Callable[[Call], None]) -> None:
        self._call: Call | None = call
        self._answers, self._close = answers, close

    def __aiter__(self) -> "SampleStream":
        return self

    async def __anext__(self) -> tuple[int, dict[str, Any]]:
        try:
            while self._call is not None:
                index = await self._call.next()
                if index is None:
                    break
                live = self._call.lives[index]
                if live.state == "done":
                    return index, await self._answers.of(live)
                answer = await self._answers.so_far(live)
                if answer is not None:
                    return index, answer
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs and nobody else waits for."""
        call, self._call = self._call, None
        if call is not None:
            self._close(call)

    def __del__(self) -> None:
        self.close()
