"""The `seer-sgl` command. Heavy imports happen inside commands, so that `--help` is quick."""
