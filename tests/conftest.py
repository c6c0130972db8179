"""Settings that all tests share."""

import os

from hypothesis import settings

# In CI a run must not depend on luck; elsewhere every run looks at new examples.
# A slow machine is no failure, so no example has a deadline.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("elsewhere", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "elsewhere")
