"""Client processes of the Hub tests, and code that they run before their own."""

import subprocess
import sys
from pathlib import Path

from hub_server import HubServer

# Waiting times of back-off are cut short, so that exhausted retries cost milliseconds; nothing else is changed.
FAST_CLOCK = "import time; _sleep = time.sleep; time.sleep = lambda seconds: _sleep(min(seconds, 0.005))\n"

# The client's machine: hubmodels and timm are not installed there, importing them fails as it would for a stranger.
WITHOUT_HUBMODELS = """
import sys
class _NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hubmodels", "modeling", "conversion"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _NotInstalled())
sys.modules["timm"] = None  # so that transformers sees that it is missing, too
try:
    import hubmodels
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("hubmodels could be imported: the test would prove nothing")
"""


def run_client(hub: HubServer, work: Path, code: str, *args: str, token: str | None = "hf_write_secret") -> None:
    """Runs code, given `work` and `args`, in a process whose Hub is the server, in a folder with nothing of ours."""
    home, cwd = work / f"home-{token}", work / "elsewhere"
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, "-c", FAST_CLOCK + code, str(work), *args]
    environment = hub.client_env(home, token)
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
