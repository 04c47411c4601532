import logging
import random

import numpy as np
import pytest
import torch

# As `make test`: the order of sums depends on the number of threads, and an ill-conditioned golden network shows it.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_run():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def messages(caplog, monkeypatch):
    """Warnings of the models' code and of transformers, also those that are given once per process: a `caplog`."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.Logger.warning_once.cache_clear()  # of transformers
    caplog.set_level(logging.WARNING)
    return caplog
