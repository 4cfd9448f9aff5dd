"""Where CI decides, property tests draw the same examples each time; at a desk they go on looking."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
