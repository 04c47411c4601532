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
