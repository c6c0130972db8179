"""How an engine is told to speculate."""

from seer_sgl.config import EngineConfig
from seer_sgl.engine.argv import server_argv, server_environment
from seer_sgl.spec.settings import DRAFT_VARIABLE, DraftSettings, decode


def test_speculation_is_asked_for_where_there_are_settings() -> None:
    settings = DraftSettings(servers=("tcp://127.0.0.1:9",), engine="e")
    plain, drafting = EngineConfig("e", "/m"), EngineConfig("e", "/m", draft=settings)
    argv = server_argv(drafting, 1, True)
    assert argv[argv.index("--speculative-algorithm") + 1] == "SEER"
    assert "--speculative-algorithm" not in server_argv(plain, 1, True)
    assert decode(server_environment(drafting)[DRAFT_VARIABLE]) == settings
    assert DRAFT_VARIABLE not in server_environment(plain)
