"""For every test: no defaults file of whoever runs them."""

import os

os.environ["RUNNER_DEFAULTS"] = ""
