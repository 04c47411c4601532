"""The conformance harness itself: fetching the suites, and the record of skips."""

import io
import tarfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hubmodels.modeling.mae import MAEConfig, MAEModel

from tests.conformance import conftest, suites, transformers_suites
from tests.conformance.suites import Conformance, ModelConformance
from tests.conformance.transformers_suites import SuitesUnavailable, fetch


def write_archive(folder, members):
    path = folder / "transformers-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def downloads(monkeypatch):
    """Replaces pip; `downloads.members` is what the archive holds, `downloads.count` how often it was asked for."""
    state = SimpleNamespace(count=0, members={"transformers-1.0/tests/test_modeling_common.py": "A = 1"})

    def download(release, scratch):
        state.count += 1
        return write_archive(scratch, state.members)

    monkeypatch.setattr(transformers_suites, "_download", download)
    return state


def test_processes_that_start_at_once_fetch_once(downloads, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: fetch("1.0", tmp_path), range(4)))
    assert downloads.count == 1
    assert (folders.pop() / "test_modeling_common.py").read_text() == "A = 1"
    assert not folders


def test_only_python_files_of_the_tests_are_extracted(downloads, tmp_path):
    downloads.members |= {
        "transformers-1.0/tests/inner/helper.py": "",
        "transformers-1.0/tests/data.bin": "",
        "transformers-1.0/tests/../../escaped.py": "",
        "transformers-1.0/setup.py": "",
    }
    folder = fetch("1.0", tmp_path)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"__init__.py", "test_modeling_common.py", "inner/__init__.py", "inner/helper.py"}
    assert not list(tmp_path.rglob("escaped.py"))


def test_a_failed_fetch_leaves_nothing_and_can_be_repeated(downloads, tmp_path):
    complete, downloads.members = downloads.members, {"transformers-1.0/setup.py": ""}
    with pytest.raises(SuitesUnavailable, match="holds no tests/"):
        fetch("1.0", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    downloads.members = complete
    assert fetch("1.0", tmp_path).is_dir()


def test_without_an_index_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SuitesUnavailable, match=r"(?s)Run once with network access.*No matching distribution"):
        fetch("0.0.1", tmp_path / "cache")


def test_without_suites_every_class_fails_with_the_reason(monkeypatch):
    monkeypatch.setattr(suites, "UNAVAILABLE", "no network")
    monkeypatch.setattr(transformers_suites, "UNAVAILABLE", "no network")
    mixin = transformers_suites.load("test_modeling_common", "ModelTesterMixin")
    case = type("Case", (Conformance, mixin, unittest.TestCase), {})("test_suite_is_complete")
    with pytest.raises(AssertionError, match="no network"):
        case.setUp()


class Suite:
    def test_kept(self):
        raise AssertionError("was run")

    def test_dropped(self):
        raise AssertionError("was run")


def test_a_listed_skip_is_not_run_and_a_stale_one_fails():
    good = type("Good", (Conformance, Suite, unittest.TestCase), {"skips": {"test_dro*": "for a reason"}})
    with pytest.raises(unittest.SkipTest, match="for a reason"):
        good("test_dropped").test_dropped()
    with pytest.raises(AssertionError, match="was run"):
        good("test_kept").test_kept()
    good("test_suite_is_complete").test_suite_is_complete()
    stale = type("Stale", (Conformance, Suite, unittest.TestCase), {"skips": {"test_gone": "for a reason"}})
    with pytest.raises(AssertionError, match="test_gone"):
        stale("test_suite_is_complete").test_suite_is_complete()


@pytest.mark.parametrize(("name", "outcome"), [("test_listed", "skipped"), ("test_unlisted", "failed")])
def test_an_unlisted_skip_fails(name, outcome):
    case = type("Case", (Conformance,), {"self_skips": {"test_listed": "for a reason"}})
    report = SimpleNamespace(skipped=True, outcome="skipped", longrepr=("suite.py", 1, "Skipped: no reason"))
    hook = conftest.pytest_runtest_makereport(SimpleNamespace(cls=case, name=name), None)
    next(hook)
    with pytest.raises(StopIteration):
        hook.send(report)
    assert report.outcome == outcome
    assert ("for a reason" if outcome == "skipped" else "no reason") in str(report.longrepr)


def test_a_pass_without_a_model_is_a_skip():
    class Case(ModelConformance, unittest.TestCase):
        model_class = MAEModel
        config = MAEConfig(
            image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )

        def test_empty(self):
            pass

        def test_with_model(self):
            self.model_class(self.config)

    outcomes = {}
    for name in ("test_empty", "test_with_model"):
        result = Case(name).run()
        assert not result.failures + result.errors
        outcomes[name] = [reason for _, reason in result.skipped]
    assert outcomes == {"test_empty": ["ends without having built a model"], "test_with_model": []}
