"""Fixtures of the Hub tests: a live server and client processes."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from client_code import FAST_CLOCK
from hub_server import HubServer


@pytest.fixture
def hub():
    """A fresh, empty Hub."""
    with HubServer() as server:
        yield server


@pytest.fixture
def run_client(hub, tmp_path):
    """Run Python code in a client process of the Hub.

    `run_client(code, *args, token=..., check=True)` returns the completed process. Its working directory is an empty
    folder, its caches are its own.
    """

    def run(
        code: str,
        *args: object,
        token: str | None = "hf_write_secret",
        check: bool = True,
        home: Path | None = None,
    ) -> subprocess.CompletedProcess:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", FAST_CLOCK + textwrap.dedent(code), *map(str, args)],
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
