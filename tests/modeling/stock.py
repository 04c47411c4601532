"""Tests that show what transformers itself does, for the version in which it was seen."""

import pytest
import transformers

stock_5_23 = pytest.mark.skipif(
    not transformers.__version__.startswith("5.23."), reason="describes what transformers 5.23 does"
)
