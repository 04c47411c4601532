"""Publishing to a live Hub: one commit, complete or absent, whatever the server does."""

import pytest
from saved_folders import snapshot, write_saved_folder

PUBLISH = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from hubmodels.publishing import PublishError, publish
folder, repo_id, *options = sys.argv[1:]
arguments = dict(option.split("=") for option in options)
try:
    print("URL", publish(folder, repo_id, private="private" in arguments, update="update" in arguments,
                         token=arguments.get("token"), revision=arguments.get("revision")))
except PublishError as error:
    print("PublishError", error)
    sys.exit(3)
finally:
    assert "torch" not in sys.modules
"""
PUBLISHED = {
    "README.md",
    "config.json",
    "configuration_mae.py",
    "model.safetensors",
    "modeling_mae.py",
    "preprocessor_config.json",
}


@pytest.fixture
def publish(run_client, tmp_path):
    """Run `publish` in a client process; returns its output, or checks that it fails with a PublishError."""

    def run(folder, repo_id="alice/tiny", *options, fails=False, token="hf_write_secret"):
        done = run_client(PUBLISH, folder, repo_id, *options, token=token, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == (3 if fails else 0), output
        assert "secret" not in output.replace(str(tmp_path), ""), "the token was printed"
        return output

    return run


@pytest.fixture
def folder(tmp_path):
    return write_saved_folder(tmp_path / "saved")


def test_publish_makes_one_complete_commit(hub, publish, folder):
    before = snapshot(folder)
    output = publish(folder)
    repository = hub.repository("alice/tiny")
    assert [c.title for c in repository.history()] == ["Publish with hubmodels", "initial commit"]
    assert repository.branches["main"] in output
    assert not repository.private
    assert set(hub.files("alice/tiny")) >= PUBLISHED
    assert hub.files("alice/tiny")["model.safetensors"] == before["model.safetensors"]
    assert repository.resolve("main").files["model.safetensors"].lfs
    assert b"alice/tiny" in hub.files("alice/tiny")["README.md"]
    assert snapshot(folder) == before


def test_publish_completes_a_bare_name_with_the_owner_of_the_token(hub, publish, folder):
    publish(folder, "tiny")
    assert b'from_pretrained("alice/tiny"' in hub.files("alice/tiny")["README.md"]


def test_publish_private(hub, publish, folder):
    publish(folder, "alice/tiny", "private=1")
    assert hub.repository("alice/tiny").private


def test_existing_repository_is_refused_without_update(hub, publish, folder):
    publish(folder)
    head = hub.repository("alice/tiny").branches["main"]
    write_saved_folder(folder, seed=1)
    output = publish(folder, fails=True)
    assert "alice/tiny exists already" in output and "--update" in output
    assert hub.repository("alice/tiny").branches["main"] == head


def test_update_adds_exactly_one_commit_and_replaces_stale_weights_and_code(hub, publish, folder):
    publish(folder)
    repository = hub.repository("alice/tiny")
    blob = repository.resolve("main").files["README.md"]
    extra = (
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "old_mae.py",
        "handler.py",
        "notes.txt",
    )
    repository.commit("main", "user's work", repository.resolve("main").files | dict.fromkeys(extra, blob))
    write_saved_folder(folder, seed=1)
    publish(folder, "alice/tiny", "update=1")
    assert len(repository.history()) == 4
    files = hub.files("alice/tiny")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert set(extra) & set(files) == {"handler.py", "notes.txt"}


def test_update_with_unchanged_files_makes_no_commit(hub, publish, folder):
    publish(folder)
    publish(folder, "alice/tiny", "update=1")
    assert len(hub.repository("alice/tiny").history()) == 2


def test_update_does_not_turn_a_private_upload_public(hub, publish, folder):
    publish(folder)
    write_saved_folder(folder, seed=1)
    output = publish(folder, "alice/tiny", "update=1", "private=1", fails=True)
    assert "is public" in output
    assert len(hub.repository("alice/tiny").history()) == 2


def test_publish_to_a_new_branch_leaves_main_alone(hub, publish, folder):
    publish(folder)
    write_saved_folder(folder, seed=1)
    publish(folder, "alice/tiny", "update=1", "revision=v2")
    repository = hub.repository("alice/tiny")
    assert len(repository.history("main")) == 2
    assert len(repository.history("v2")) == 3
    assert hub.files("alice/tiny", "v2")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


FAULTY_PATHS = [
    ("GET", "^/api/whoami"),
    ("GET", "^/api/models/alice/tiny$"),
    ("POST", "^/api/repos/create"),
    ("POST", "^/api/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "^/lfs/upload"),
    ("POST", "^/lfs/verify"),
    ("POST", "/commit/main"),
]


def test_server_errors_everywhere_are_retried(hub, publish, folder):
    for method, path in FAULTY_PATHS:
        hub.add_fault(method, path, times=1, status=500)
        hub.add_fault(method, path, times=1, status=503)
    publish(folder, "tiny")
    assert len(hub.repository("alice/tiny").history()) == 2
    assert all(fault.times == 0 for fault in hub.faults), "a fault was never met"


@pytest.mark.parametrize("kind", ["cut", "lose_answer"])
def test_cut_connections_everywhere_are_retried_and_commit_once(hub, publish, folder, kind):
    for method, path in FAULTY_PATHS:
        hub.add_fault(method, path, kind=kind, times=1)
    publish(folder, "tiny")
    assert [c.title for c in hub.repository("alice/tiny").history()] == ["Publish with hubmodels", "initial commit"]
    assert set(hub.files("alice/tiny")) >= PUBLISHED
    assert all(fault.times == 0 for fault in hub.faults), "a fault was never met"


@pytest.mark.parametrize("kind", ["status", "cut"])
@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "^/lfs/upload"), ("POST", "/commit/main"), ("POST", "/preupload/")]
)
def test_failed_first_upload_leaves_nothing_visible(hub, publish, folder, method, path, kind):
    hub.add_fault(method, path, kind=kind, times=10_000)
    output = publish(folder, fails=True)
    assert hub.repositories == {}
    assert "was deleted again" in output
    assert hub.count(method, path.lstrip("^")) >= 3, "it was not retried"


def test_lost_answers_of_create_leave_nothing_visible(hub, publish, folder):
    hub.add_fault("POST", "/repos/create", kind="lose_answer", times=10_000)
    output = publish(folder, fails=True)
    assert hub.repositories == {}
    assert "was deleted again" in output


@pytest.mark.parametrize("kind", ["status", "cut"])
@pytest.mark.parametrize(("method", "path"), [("PUT", "^/lfs/upload"), ("POST", "/commit/main")])
def test_failed_update_leaves_the_repository_as_it_was(hub, publish, folder, method, path, kind):
    publish(folder)
    repository = hub.repository("alice/tiny")
    head = repository.branches["main"]
    write_saved_folder(folder, seed=1)
    hub.add_fault(method, path, kind=kind, times=10_000)
    output = publish(folder, "alice/tiny", "update=1", fails=True)
    assert repository.branches == {"main": head}
    assert "alice/tiny is unchanged" in output


def test_failed_new_branch_is_deleted_again(hub, publish, folder):
    publish(folder)
    hub.add_fault("POST", "/commit/v2", times=10_000)
    write_saved_folder(folder, seed=1)
    output = publish(folder, "alice/tiny", "update=1", "revision=v2", fails=True)
    assert set(hub.repository("alice/tiny").branches) == {"main"}
    assert "'v2' was deleted again" in output


def test_an_undeletable_leftover_is_reported(hub, publish, folder):
    hub.add_fault("POST", "/commit/main", times=10_000)
    hub.add_fault("DELETE", "/repos/delete", times=10_000)
    output = publish(folder, fails=True)
    assert "alice/tiny was created empty for this upload and could not be deleted" in output


def test_concurrent_commit_is_not_overwritten_unseen(hub, publish, folder):
    publish(folder)
    write_saved_folder(folder, seed=1)
    hub.add_fault("POST", "/commit/main", kind="status", status=412, times=1)  # "a commit has happened since"
    output = publish(folder, "alice/tiny", "update=1", fails=True)
    assert "412" in output and "unchanged" in output


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [("hf_wrong_secret", "401", "HF_TOKEN"), ("hf_read_secret", "403", "HF_TOKEN"), (None, "", "no token")],
)
def test_refused_token_is_named_but_not_printed(hub, publish, folder, token, status, reason):
    output = publish(folder, fails=True, token=token)
    assert status in output and reason in output
    assert "Traceback" not in output
    assert hub.repositories == {}


def test_token_given_as_argument_is_named_as_such(hub, publish, folder):
    output = publish(folder, "alice/tiny", "token=hf_wrong_secret", fails=True)
    assert "The token given as argument token was refused" in output


def test_unreachable_hub_is_reported(hub, publish, folder):
    hub.stop()
    output = publish(folder, fails=True)
    assert hub.url in output and "ConnectError" in output


def test_interrupted_upload_is_cleaned_up(hub, run_client, folder):
    code = """
import sys
import huggingface_hub
from hubmodels.publishing import publish
def interrupted(*args, **kwargs):
    raise KeyboardInterrupt
huggingface_hub.HfApi.create_commit = interrupted
try:
    publish(sys.argv[1], "alice/tiny")
except KeyboardInterrupt:
    print("interrupted")
"""
    assert "interrupted" in run_client(code, folder).stdout
    assert hub.repositories == {}


def test_bad_folder_and_bad_name_do_not_reach_the_hub(hub, run_client, folder):
    (folder / "model.safetensors").unlink()
    code = """
import sys
from hubmodels.publishing import publish
for arguments in [(sys.argv[1], "alice/tiny"), (sys.argv[1], "not a name")]:
    try:
        publish(*arguments)
    except (ValueError, OSError) as error:
        print(type(error).__name__, error)
"""
    lines = run_client(code, folder).stdout.splitlines()
    assert lines[0].startswith("FileNotFoundError") and "model.safetensors" in lines[0]
    assert lines[1].startswith("HFValidationError") and "not a name" in lines[1]
    assert hub.requests == []
