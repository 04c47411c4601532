"""Fixtures of the Hub tests: a live server and client processes."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hub_server import HubServer

# Waiting times of back-off are cut short, so that exhausted retries cost milliseconds; nothing else is changed.
FAST_CLOCK = "import time; _sleep = time.sleep; time.sleep = lambda seconds: _sleep(min(seconds, 0.005))\n"

# The client's machine: hubmodels is not installed there, so importing it fails as it would for a stranger.
WITHOUT_HUBMODELS = """
import sys
class _NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hubmodels", "modeling", "conversion"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _NotInstalled())
try:
    import hubmodels
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("hubmodels could be imported: the test would prove nothing")
"""


@pytest.fixture
def hub():
    """A fresh, empty Hub."""
    with HubServer() as server:
        yield server


@pytest.fixture
def run_client(hub, tmp_path):
    """Run Python code in a client process of the Hub.

    `run_client(code, *args, token=..., check=True, without_hubmodels=False)` returns the completed process. Its
    working directory is an empty folder, its caches are its own.
    """

    def run(
        code: str,
        *args: object,
        token: str | None = "hf_write_secret",
        check: bool = True,
        without_hubmodels: bool = False,
        home: Path | None = None,
    ) -> subprocess.CompletedProcess:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        prelude = FAST_CLOCK + (WITHOUT_HUBMODELS if without_hubmodels else "")
        done = subprocess.run(
            [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, args)],
            env=hub.client_env(home or tmp_path / "hf_home", token),
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"client failed:\n{done.stdout}\n{done.stderr}")
        return done

    return run
