"""The loopback Hub answers the unmodified huggingface_hub client as the real one does."""

import json

CLIENT = """
import json, sys
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

def raises(error, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as e:
        return getattr(getattr(e, "response", None), "status_code", True)
    raise AssertionError(f"{call} raised nothing")

api = HfApi()
folder = sys.argv[1]
seen = {}
"""


def run(run_client, code, *args, **kwargs):
    done = run_client(CLIENT + code + "\nprint(json.dumps(seen))", *args, **kwargs)
    return json.loads(done.stdout.splitlines()[-1])


def make_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [vision]\n---\n# Card\n")
    (folder / "sub" / "notes.txt").write_text("small file")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return folder


def test_create_upload_list_download_and_delete(hub, run_client, tmp_path):
    folder = make_folder(tmp_path)
    seen = run(
        run_client,
        """
seen["user"] = api.whoami()["name"]
seen["created"] = api.create_repo("alice/m").repo_id
seen["conflict"] = raises(HfHubHTTPError, api.create_repo, "alice/m")
api.create_repo("alice/m", exist_ok=True)
first = api.upload_folder(repo_id="alice/m", folder_path=folder, commit_message="first")
seen["list"] = sorted(api.list_repo_files("alice/m"))
seen["tree"] = {f.path: (f.size, f.lfs is not None) for f in api.list_repo_tree("alice/m", recursive=True)}
seen["exists"] = [api.repo_exists("alice/m"), api.repo_exists("alice/x"), api.file_exists("alice/m", "sub/notes.txt")]
info = api.model_info("alice/m")
seen["sha_is_commit"] = info.sha == first.oid
seen["license"] = ModelCard.load("alice/m").data.license
small = hf_hub_download("alice/m", "sub/notes.txt")
large = hf_hub_download("alice/m", "model.safetensors")
seen["small"] = open(small).read()
seen["large_equal"] = open(large, "rb").read() == open(folder + "/model.safetensors", "rb").read()
seen["missing_file"] = raises(EntryNotFoundError, hf_hub_download, "alice/m", "nothing.txt")
api.create_tag("alice/m", tag="v1")
api.create_branch("alice/m", branch="dev")
api.upload_file(repo_id="alice/m", path_or_fileobj=b"second", path_in_repo="sub/notes.txt", revision="dev")
seen["dev"] = open(hf_hub_download("alice/m", "sub/notes.txt", revision="dev")).read()
seen["v1"] = open(hf_hub_download("alice/m", "sub/notes.txt", revision="v1")).read()
seen["missing_revision"] = raises(RevisionNotFoundError, hf_hub_download, "alice/m", "README.md", revision="nope")
api.delete_file("sub/notes.txt", "alice/m", revision="dev")
seen["snapshot"] = sorted(p.name for p in __import__("pathlib").Path(snapshot_download("alice/m")).iterdir())
seen["commits"] = [c.title for c in api.list_repo_commits("alice/m")]
refs = api.list_repo_refs("alice/m")
seen["refs"] = [sorted(b.name for b in refs.branches), [t.name for t in refs.tags]]
api.delete_repo("alice/m")
seen["gone"] = raises(RepositoryNotFoundError, api.model_info, "alice/m")
""",
        folder,
    )
    assert seen["user"] == "alice"
    assert seen["created"] == "alice/m"
    assert seen["conflict"] == 409
    assert seen["list"] == [".gitattributes", "README.md", "model.safetensors", "sub/notes.txt"]
    assert seen["tree"]["model.safetensors"] == [1 << 20, True]
    assert seen["tree"]["sub/notes.txt"] == [10, False]
    assert seen["exists"] == [True, False, True]
    assert seen["sha_is_commit"]
    assert seen["license"] == "apache-2.0"
    assert seen["small"] == "small file"
    assert seen["large_equal"]
    assert seen["missing_file"] == 404
    assert (seen["dev"], seen["v1"]) == ("second", "small file")
    assert seen["missing_revision"] == 404
    assert seen["snapshot"] == [".gitattributes", "README.md", "model.safetensors", "sub"]
    assert seen["commits"] == ["first", "initial commit"]
    assert seen["refs"] == [["dev", "main"], ["v1"]]
    assert seen["gone"] == 404
    assert hub.count("PUT", "/lfs/upload") == 1
    assert hub.repositories == {}


def test_private_repository_is_hidden_without_its_token(hub, run_client, tmp_path):
    folder = make_folder(tmp_path)
    run(
        run_client,
        """
api.create_repo("alice/secret", private=True)
api.upload_folder(repo_id="alice/secret", folder_path=folder)
seen["own"] = open(hf_hub_download("alice/secret", "sub/notes.txt")).read()
""",
        folder,
    )
    refused = """
seen["info"] = raises(RepositoryNotFoundError, api.model_info, "alice/secret")
seen["file"] = raises(RepositoryNotFoundError, hf_hub_download, "alice/secret", "README.md")
seen["write"] = raises(HfHubHTTPError, api.create_repo, "alice/other")
"""
    elsewhere = tmp_path / "other_home"
    assert run(run_client, refused, folder, token=None, home=elsewhere) == {"info": 401, "file": 401, "write": 401}
    assert run(run_client, refused, folder, token="hf_read_secret", home=elsewhere)["info"] == 404
    assert hub.repository("alice/other") is None


def test_faults_hit_the_named_requests_only(hub, run_client, tmp_path):
    folder = make_folder(tmp_path)
    hub.add_fault("PUT", "/lfs/", kind="cut", times=2)
    hub.add_fault("POST", "/preupload/", status=503)
    seen = run(
        run_client,
        """
api.create_repo("alice/m")
seen["oid"] = api.upload_folder(repo_id="alice/m", folder_path=folder).oid
""",
        folder,
    )
    assert hub.repository("alice/m").resolve("main").sha == seen["oid"]
    assert hub.count("PUT", "/lfs/upload") == 3
    assert hub.files("alice/m")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
