"""Settings that all tests share."""

import os

from hypothesis import settings

# In CI a run must not depend on luck; elsewhere every run looks at new examples.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
