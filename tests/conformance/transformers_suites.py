"""transformers' own common test suites, of the installed version.

They ship in the source distribution only (`tests/test_modeling_common.py` and its neighbours). The first use fetches
that with pip into the user's cache; later uses are offline. A cached copy is complete or absent, and processes that
start at once fetch it once. The suites become importable as `transformers_test_suites`, which cannot clash with our
`tests`.
"""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from transformers import testing_utils

from tests.conformance import stand_ins

PACKAGE = "transformers_test_suites"

# Modules of transformers' repository that the suites import but its source distribution leaves out.
MISSING_MODULES = (
    f"{PACKAGE}.exporters.test_export",
    f"{PACKAGE}.generation.test_utils",
    f"{PACKAGE}.utils.test_configuration_utils",
    "fetch_hub_objects_for_ci",
)


class SuitesUnavailable(RuntimeError):
    """The suites are not in the cache and could not be fetched; the message says why."""


def cache_folder() -> Path:
    """The user's cache, `$XDG_CACHE_HOME/hubmodels` or `~/.cache/hubmodels`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hubmodels"


def fetch(release: str, cache: Path | None = None) -> Path:
    """
    Returns the folder of the suites of transformers `release`, fetching it if it is not there.

    Args:
        release: version of transformers, as `5.23.0`.
        cache: where to keep it, [`cache_folder`] by default.

    Raises:
        SuitesUnavailable: if pip cannot get the source distribution or it holds no suites.
    """
    cache = cache or cache_folder()
    folder = cache / f"transformers-{release}-tests"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
                archive = _download(release, Path(scratch))
                _extract(archive, Path(scratch) / "tests")
                os.replace(Path(scratch) / "tests", folder)
    return folder


def _download(release: str, scratch: Path) -> Path:
    """The source distribution, by pip: it may also come from `PIP_FIND_LINKS` or another index of the user's."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(scratch), f"transformers=={release}"]
    if importlib.util.find_spec("setuptools"):
        command.append("--no-build-isolation")  # half the time: pip only wants the metadata
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(scratch.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        reason = (done.stderr or done.stdout).strip()[-1000:]
        raise SuitesUnavailable(
            f"transformers' test suites are needed once from its source distribution, and pip could not fetch it. "
            f"Run once with network access, or put transformers-{release}.tar.gz in a folder named by PIP_FIND_LINKS.\n"
            f"{' '.join(command)}\n{reason}"
        )
    return archives[0]


def _extract(archive: Path, folder: Path) -> None:
    """Writes the Python files of the archive's `tests/` as a package."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, *parts = PurePosixPath(member.name).parts
            source = tar.extractfile(member) if member.isfile() else None
            if source and parts[:1] == ["tests"] and ".." not in parts and parts[-1].endswith(".py"):
                path = folder.joinpath(*parts[1:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source.read())
    if not (folder / "test_modeling_common.py").is_file():
        raise SuitesUnavailable(f"{archive.name} holds no tests/test_modeling_common.py")
    for package in {folder, *(path.parent for path in folder.rglob("*.py"))}:
        (package / "__init__.py").touch()


def _import_package() -> str | None:
    """Makes the suites importable; the reason if that is not possible."""
    try:
        folder = fetch(version("transformers"))
    except (SuitesUnavailable, OSError) as error:
        return str(error)
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    sys.modules[PACKAGE] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in MISSING_MODULES:
        if not (folder / (name.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py")).is_file():
            sys.modules[name] = stand_ins
    return None


UNAVAILABLE = _import_package()
"""Why there are no suites, or `None`. Every conformance class fails with it (`test_suite_is_complete`)."""


def load(module: str, name: str) -> Any:
    """`load("test_modeling_common", "ModelTesterMixin")`; an empty class where the suites are unavailable."""
    if UNAVAILABLE:
        return type(name, (), {})
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


def markers() -> set[str]:
    """Names of the pytest markers that the suites use; with `--strict-markers` they have to be declared."""
    if UNAVAILABLE:
        return set()
    sources = [*Path(sys.modules[PACKAGE].__path__[0]).glob("test_*.py"), Path(testing_utils.__file__)]
    return {name for path in sources for name in re.findall(r"\bmark\.(\w+)", path.read_text(encoding="utf-8"))}
