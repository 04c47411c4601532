"""Code that a client process of the Hub tests runs before its own."""

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
