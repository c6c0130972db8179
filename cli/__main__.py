"""`python -m seer_sgl_cli`."""

from .main import app

app()
