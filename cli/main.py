"""The commands, one file each."""

import typer

from .demo import demo
from .doctor import doctor
from .join import join
from .profile import profile
from .rollout import rollout
from .serve import serve
from .sim import sim

app = typer.Typer(
    name="seer-sgl",
    help="A rollout engine for synchronous RL of language models, on SGLang.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": False}

app.command(context_settings=_PASS_ON)(serve)
app.command(context_settings=_PASS_ON)(join)
app.command()(rollout)
app.command()(profile)
app.command()(demo)
app.command()(sim)
app.command()(doctor)
