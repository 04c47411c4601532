import logging

import pytest


@pytest.fixture
def messages(caplog, monkeypatch):
    """Warnings of the models' code and of transformers, also those that are given once per process: a `caplog`."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.Logger.warning_once.cache_clear()  # of transformers
    caplog.set_level(logging.WARNING)
    return caplog
