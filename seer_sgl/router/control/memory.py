"""Device memory given back and taken again: nothing may run meanwhile, and SGLang ends where it does."""

from seer_sgl.errors import RequestError
from seer_sgl.router.control.asking import Engines
from seer_sgl.router.control.fields import decoded
from seer_sgl.router.control.holds import EVERY, PAUSED, RELEASED, Holds
from seer_sgl.router.control.merging import Replies
from seer_sgl.router.control.requests import Tags
from seer_sgl.types import EngineId

TAGS = ("kv_cache", "weights", "cuda_graph")
"""SGLang's; all of them where a call names none."""


class Memory:
    """Keeps account of what each engine has given back."""

    def __init__(self, engines: Engines, holds: Holds) -> None:
        self._engines = engines
        self._holds = holds
        self._released: dict[EngineId, set[str]] = {}
        self._releasing = 0

    async def release(
        self, engines: list[EngineId], target: str, body: bytes, only: EngineId | None
    ) -> Replies:
        """Give memory back once nothing runs. Requests wait until all of it is there again.

        Raises:
            RequestError: requests are held by a pause and will not end; or a tag is unknown.
        """
        tags = _tags(body)
        if self._holds.has(PAUSED, only) and self._holds.busy(only):
            raise RequestError("", "requests are paused, not ended: abort them before releasing memory")
        self._holds.add(RELEASED, only)
        self._releasing += 1
        try:
            await self._holds.idle(only)
            found = await self._engines.ask(engines, "POST", target, body)
            for engine, reply in found.items():
                if reply.good:
                    self._released.setdefault(engine, set()).update(tags)
            return found
        finally:
            self._releasing -= 1
            self._settle(only)

    async def resume(
        self, engines: list[EngineId], target: str, body: bytes, only: EngineId | None
    ) -> Replies:
        """Take memory again.

        Raises:
            RequestError: it was not given back; SGLang ends over that.
        """
        tags = _tags(body)
        for engine in engines:
            missing = [tag for tag in tags if tag not in self._released.get(engine, ())]
            if missing:
                raise RequestError("tags", f"engine {engine} has not released {', '.join(missing)}")
        found = await self._engines.ask(engines, "POST", target, body)
        for engine, reply in found.items():
            if reply.good:
                self._released[engine] -= tags
        self._settle(only)
        return found

    def engine_left(self, engine: EngineId) -> None:
        self._released.pop(engine, None)
        self._settle(EVERY)

    def _settle(self, only: EngineId | None) -> None:
        """Go on as soon as no engine lacks memory."""
        self._released = {engine: tags for engine, tags in self._released.items() if tags}
        if self._releasing:
            return
        if not self._released:
            self._holds.drop(RELEASED)
        elif only is not EVERY and only not in self._released:
            self._holds.drop(RELEASED, only)


def _tags(body: bytes) -> set[str]:
    return set(decoded(body, Tags).tags or TAGS)
