"""Fishers on the Hub: against a hub in a folder, never the real one."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

import fisherscope as fs
from fisherscope.integrations import hub
from fisherscope.structures.manifest import signed
from structures.fishers import build, same_bits, scores

FISHER = build(scores("abc", draws=2), fisher_type="mc", skipped=("x",), halves=([0, 1], [2]))
OTHER = build(scores("defgh", seed=1))


class FakeHub:
    """Repositories as folders of commits; what is fetched is copied, and noted."""

    def __init__(self, root: Path):
        self.root, self.fetched, self.token = root, [], None

    def api(self, token=None):
        self.token = token
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        if not (self.root / repo_id).exists():
            self.commit(repo_id, {".gitattributes": b""})
        return f"https://huggingface.co/{repo_id}"

    def head(self, repo_id) -> Path:
        if not (self.root / repo_id).is_dir():
            raise refusal(errors.RepositoryNotFoundError, 404)
        return max((self.root / repo_id).iterdir())

    def commit(self, repo_id, files: dict[str, bytes]):
        number = len(list((self.root / repo_id).iterdir())) if (self.root / repo_id).exists() else 0
        place = self.root / repo_id / f"{number:040x}"
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)

    def files(self, repo_id) -> dict[str, bytes]:
        head = self.head(repo_id)
        found = [p for p in head.rglob("*") if p.is_file()]
        return {p.relative_to(head).as_posix(): p.read_bytes() for p in found}

    def list_repo_files(self, repo_id):
        return list(self.files(repo_id))

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        files = self.files(repo_id)
        for name in list(filter_repo_objects(files, allow_patterns=delete_patterns)):
            del files[name]
        new = [p for p in folder_path.rglob("*") if p.is_file()]
        files |= {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in new}
        self.commit(repo_id, files)

    def snapshot(self, repo_id, *, revision, allow_patterns, token, cache_dir):
        head = self.head(repo_id)
        commit = head if revision is None else head.with_name(revision)
        if not commit.is_dir():
            raise refusal(errors.RevisionNotFoundError, 404)
        place = Path(cache_dir) / repo_id / commit.name
        place.mkdir(parents=True, exist_ok=True)
        names = [p.relative_to(commit).as_posix() for p in commit.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(commit / name, place / name)
            self.fetched.append(name)
        return str(place)


def refusal(kind, code):
    response = SimpleNamespace(status_code=code, headers={}, request=None)
    return kind("the hub's own words", response=response)


@pytest.fixture
def there(tmp_path, monkeypatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake.api)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot)
    return fake


@pytest.fixture
def read(tmp_path):
    return lambda name="me/f", **options: fs.from_hub(name, cache_dir=tmp_path / "c", **options)


# Would catch: bits, halves or the ledger lost on the way; files of the Fisher before left among
# those of the next one; a branch that has moved on between two downloads; a revision ignored.
def test_what_was_pushed_comes_back(there, read, tmp_path):
    assert fs.push_to_hub(FISHER, "me/f", token="secret") == "https://huggingface.co/me/f"
    assert there.token == "secret"
    assert same_bits(read(), FISHER)
    first = there.head("me/f").name
    fs.push_to_hub(OTHER, "me/f")
    assert not [name for name in there.files("me/f") if "half" in name]
    fs.push_to_hub(FISHER, "me/small", dtype=torch.bfloat16)
    small, whole = (len(there.files(name)["sums.safetensors"]) for name in ("me/small", "me/f"))
    assert small < whole and not same_bits(read("me/small"), FISHER)
    assert same_bits(read(), OTHER)
    assert same_bits(read(revision=first), FISHER)
    real = there.snapshot

    def moving(*arguments, **options):
        found = real(*arguments, **options)
        fs.push_to_hub(FISHER, "me/f")
        return found

    hub.snapshot_download = moving
    shutil.rmtree(tmp_path / "c")
    assert same_bits(read(), OTHER)


# Would catch: a model's weights deleted or mixed with a Fisher.
def test_a_repository_of_something_else_is_left_alone(there):
    there.commit("me/model", {"model.safetensors": b"weights", "README.md": b"my model"})
    before = there.files("me/model")
    with pytest.raises(fs.StoreError, match=r"me/model.*model\.safetensors.*another repository"):
        fs.push_to_hub(FISHER, "me/model")
    assert there.files("me/model") == before
    there.commit("me/new", {"README.md": b"soon", ".gitattributes": b""})
    fs.push_to_hub(FISHER, "me/new")
    assert b"soon" not in there.files("me/new")["README.md"]


# Would catch: gigabytes of a model fetched before it is clear that it is no Fisher; pickles and
# scripts fetched at all; a newer format read as if it were this one; damage let through.
def test_only_a_sound_fisher_is_read(there, read):
    there.commit("me/model", {"model.safetensors": b"weights"})
    with pytest.raises(fs.StoreError, match=r"'me/model' has no fisher\.json"):
        read("me/model")
    assert there.fetched == []
    fs.push_to_hub(FISHER, "me/f")
    good = there.files("me/f")
    there.commit("me/f", {**good, "sums.pkl": pickle.dumps(1), "half-0/run.py": b"boom"})
    assert same_bits(read(), FISHER)
    assert {name.rpartition(".")[2] for name in there.fetched} == {"json", "safetensors"}
    there.fetched.clear()
    content = json.loads(good["fisher.json"])
    del content["checksum"]
    newer = json.dumps(signed({**content, "format_version": 2})).encode()
    there.commit("me/f", {**good, "fisher.json": newer})
    with pytest.raises(fs.StoreError, match="format version 2.*reads 1"):
        read()
    assert there.fetched == ["fisher.json"]
    flipped = bytearray(good["sums.safetensors"])
    flipped[-1] ^= 1
    there.commit("me/f", {**good, "sums.safetensors": bytes(flipped)})
    with pytest.raises(fs.StoreError, match=r"sums\.safetensors was changed"):
        read()
    there.commit("me/f", {n: c for n, c in good.items() if n != "ledger.safetensors"})
    with pytest.raises(fs.StoreError, match=r"ledger\.safetensors is missing"):
        read()


# Would catch: tracebacks of other libraries, and messages without a way out.
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.LocalTokenNotFoundError("no token"), "not logged in; run `hf auth login`"),
        (refusal(errors.HfHubHTTPError, 401), "HTTP 401.*hf auth login"),
        (refusal(errors.HfHubHTTPError, 403), "HTTP 403.*right"),
        (refusal(errors.HfHubHTTPError, 500), "own words"),
        (errors.OfflineModeIsEnabled("offline"), "offline; check the connection"),
        (errors.HfHubHTTPError.__bases__[0]("no route"), "no route; check the connection"),
        (errors.LocalEntryNotFoundError("nothing cached"), "cached; check the connection"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_is_said_with_the_fix(there, read, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    there.upload_folder = fail
    with pytest.raises(fs.StoreError, match=f"can't push to 'me/f': .*{said}"):
        fs.push_to_hub(FISHER, "me/f")
    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(fs.StoreError, match=f"can't read 'me/f': .*{said}"):
        read()


def test_what_is_not_there_is_named(there, read):
    with pytest.raises(fs.StoreError, match="no repository 'me/f' that you may see"):
        read()
    fs.push_to_hub(FISHER, "me/f")
    with pytest.raises(fs.StoreError, match="no revision 'v9'; give a branch, a tag or a commit"):
        read(revision="v9")
    for name in ("a/b/c", "", "../f", "me/f:x"):
        with pytest.raises(fs.ParameterError, match="'user/name'"):
            read(name)
        with pytest.raises(fs.ParameterError, match="'user/name'"):
            fs.push_to_hub(FISHER, name)
    with pytest.raises(fs.ParameterError, match="takes a Fisher, not str"):
        fs.push_to_hub("fisher", "me/f")


# Would catch: a card that does not say what the numbers are, or whose metadata no reader takes.
def test_the_card_says_how_it_was_made(there):
    fs.push_to_hub(FISHER, "me/f", model="openai-community/gpt2", data="wikitext, 3 rows")
    text = there.files("me/f")["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "fisherscope"
    identity = FISHER.identity
    for said in (
        "# Fisher information of openai-community/gpt2",
        "| data | wikitext, 3 rows |",
        "| structure | diagonal |",
        "| labels | mc, 2 draws, seed 0 |",
        "| examples | 3, and 1 skipped (not finite) |",
        f"| tokens | {FISHER.n_tokens} |",
        f"| trace per unit | {FISHER.trace():.6g}, standard error",
        f"| fingerprint of the data | {identity.data_fingerprint} |",
        f"| made with | fisherscope {identity.version} |",
        'fs.from_hub("me/f")',
    ):
        assert said in body, said


# Would catch: names that become markup, a link, a row of the table or metadata on somebody's page.
def test_names_in_the_card_are_text(there):
    bad = "<script>x</script> [a](b) | c | `d`\n---\ntags: [e]\n# f ![g](h)"
    fs.push_to_hub(FISHER, "me/f", model=bad, data=bad)
    text = there.files("me/f")["README.md"].decode()
    assert "<script" not in text and text.count("---\n") == 2
    assert "tags: [e]" not in text and "\\[a\\](b) \\| c \\| \\`d\\`" in text
    assert "!\\[g\\]" in text and yaml.safe_load(text.split("---\n")[1])["tags"][0] == "fisherscope"
