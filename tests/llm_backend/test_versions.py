"""The versions that are written beside a result."""

from __future__ import annotations

import numpy as np

from llm_backend.versions import versions


def test_what_is_installed_is_named_and_the_rest_left_out():
    assert versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}
