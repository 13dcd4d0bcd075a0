import importlib
import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from fisherscope.data import collate, read_jsonl
from fisherscope.demo import build
from fisherscope.errors import ParameterError, StoreError

# The function hides the module of the same name.
module = importlib.import_module("fisherscope.demo.build")


@pytest.fixture(autouse=True)
def quick(monkeypatch, small):
    monkeypatch.setattr(module, "read_corpora", lambda: small)


@pytest.fixture(scope="module")
def built(tmp_path_factory, small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_corpora", lambda: small)
        out = tmp_path_factory.mktemp("demo") / "out"
        return build(out, steps=3, tuning_steps=2, progress=False)


def forbid(*_, **__):
    raise AssertionError("trained again")


def test_everything_is_where_it_should_be(built, small):
    # Catches tasks or checkpoints under other names than the rest of the demo looks for.
    out = built.base.parent.parent
    assert built.instruct == out / "models" / "instruct"
    assert {name: path.name for name, path in built.tasks.items()} == {
        name: f"{name}.jsonl" for name in ("code", "prose", "qa")
    }
    for name, path in built.tasks.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == list(small.held_out[name])
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "models", "tasks"]
    assert {name: len(row) for name, row in built.train_losses.items()} == {
        "base": 3,
        "instruct": 2,
    }


@pytest.mark.parametrize("name", ["base", "instruct"])
def test_the_checkpoints_load_like_any_other(built, name):
    # Catches pickled weights, an untied head after loading, and weights that were not saved.
    folder = getattr(built, name)
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.pad_token_id == tokenizer.pad_token_id
    for path in built.tasks.values():
        batch = collate(read_jsonl(path, tokenizer))
        loss = batch.call(model, labels=batch.labels).loss
        assert torch.isfinite(loss)


def test_the_instruct_model_is_trained_further(built):
    # Catches saving one model twice, or fine-tuning the base model itself.
    base, instruct = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (built.base, built.instruct)
    )
    changed = [name for name in base if not torch.equal(base[name], instruct[name])]
    assert len(changed) > 0.9 * len(base)


def test_the_same_settings_are_reused(built, monkeypatch):
    # Catches training for minutes at every call.
    monkeypatch.setattr(module, "fine_tune", forbid)
    again = build(built.base.parent.parent, steps=3, tuning_steps=2, progress=False)
    assert again.reused
    assert again.train_losses == built.train_losses


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 4}, {"tuning_steps": 1}])
def test_other_settings_are_not_reused(built, monkeypatch, change):
    # Catches a setting that is missing in the manifest.
    monkeypatch.setattr(module, "fine_tune", forbid)
    settings = {"steps": 3, "tuning_steps": 2, **change}
    with pytest.raises(AssertionError, match="trained again"):
        build(built.base.parent.parent, progress=False, **settings)


def test_a_damaged_build_is_made_again_bit_for_bit(built, tmp_path, small):
    # Catches reuse of a truncated checkpoint, and anything in a build that is not seeded.
    out = tmp_path / "copy"
    shutil.copytree(built.base.parent.parent, out)
    weights = out / "models" / "base" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    torch.rand(5)
    again = build(out, steps=3, tuning_steps=2, progress=False)
    assert not again.reused and again.train_losses == built.train_losses
    assert weights.read_bytes() == whole
    before, after = (
        json.loads((folder / "manifest.json").read_text())["files"]
        for folder in (built.base.parent.parent, out)
    )
    assert before == after


def test_global_random_state_is_left_alone(tmp_path, monkeypatch):
    # Catches torch.manual_seed and draws from the global generators.
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build(tmp_path, steps=1, tuning_steps=1, progress=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("step", ["train_tokenizer", "new_model", "fine_tune", "_lessons"])
def test_nothing_is_written_when_a_step_fails(tmp_path, monkeypatch, step):
    # Catches an empty folder or half a build that a later call trips over.
    monkeypatch.setattr(module, step, forbid)
    with pytest.raises(AssertionError):
        build(tmp_path / "out", steps=1, tuning_steps=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_saving_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    # Catches an error of the weights' format that no caller knows, and half a checkpoint.
    def full(*_, **__):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(StoreError, match="No space left"):
        build(tmp_path / "out", steps=1, tuning_steps=1, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"tuning_steps": -1},
        {"seed": -1},
        {"seed": "0"},
        {"seed": 2**64},
    ],
)
def test_wrong_numbers_are_named(tmp_path, wrong):
    # Catches an error out of torch after a minute.
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        build(tmp_path / "out", progress=False, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path, monkeypatch):
    # Catches a minute of training for nothing.
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "fine_tune", forbid)
    with pytest.raises(StoreError, match="file"):
        build(tmp_path / "file" / "out", steps=1, tuning_steps=1, progress=False)


def test_a_quiet_build_prints_nothing(tmp_path, capfd):
    # Catches progress bars and warnings of other libraries with progress=False.
    build(tmp_path, steps=1, tuning_steps=1, progress=False)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""
