from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
from transformers import BertConfig, BertModel

import checkpoints
from fisherscope.errors import ConfigError
from fisherscope.metrics import loading
from fisherscope.metrics.loading import load_model, open_checkpoint
from fisherscope.metrics.run_config import RunConfig


def config(model, **changes):
    return RunConfig(model=str(model), tasks={"t": "t.jsonl"}, device="cpu", **changes)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return checkpoints.llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    ("build", "options", "kind", "cls"),
    [
        (checkpoints.llama, {}, "causal-lm", "LlamaForCausalLM"),
        (checkpoints.bert, {}, "classification", "BertForSequenceClassification"),
        (checkpoints.bert, {"masked": True}, "masked-lm", "BertForMaskedLM"),
        (checkpoints.llama_classifier, {}, "classification", "LlamaForSequenceClassification"),
    ],
)
def test_the_class_follows_the_checkpoint(tmp_path, build, options, kind, cls):
    # Would catch a classifier loaded as a language model, or one left in training mode.
    run = config(build(tmp_path / "model", **options))
    checkpoint = open_checkpoint(run)
    model = load_model(checkpoint, run)
    assert checkpoint.kind == kind
    assert type(model).__name__ == cls
    assert not model.training


def test_a_folder_never_touches_the_network(llama, monkeypatch):
    # Would catch a tokenizer or a model that asks the hub although everything is here. Which
    # of them would ask depends on the checkpoint, so each must have been told not to.
    def refuse(*_, **__):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    told = []
    for cls in (loading.AutoConfig, loading.AutoTokenizer, loading.AutoModelForCausalLM):
        read = cls.from_pretrained

        def spied(*arguments, read=read, **options):
            told.append(options["local_files_only"])
            return read(*arguments, **options)

        monkeypatch.setattr(cls, "from_pretrained", spied)
    run = config(llama)
    load_model(open_checkpoint(run), run)
    assert len(told) >= 3
    assert all(told)


@pytest.mark.parametrize(("asked", "dtype"), [("auto", torch.bfloat16), ("float64", torch.float64)])
def test_weights_keep_the_precision_they_are_stored_in(tmp_path, asked, dtype):
    # Would catch a checkpoint silently widened or narrowed.
    from transformers import LlamaForCausalLM

    folder = checkpoints.llama(tmp_path / "model")
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    run = config(folder, dtype=asked)
    model = load_model(open_checkpoint(run), run)
    assert {p.dtype for p in model.parameters()} == {dtype}


def refused(model, **changes):
    run = config(model, **changes)
    with pytest.raises(ConfigError) as caught:
        load_model(open_checkpoint(run), run)
    return str(caught.value)


def test_what_is_no_checkpoint_is_named_with_the_fix(tmp_path):
    # Would catch another library's error about a file that the user never named.
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_text("x")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "no config.json" in refused(tmp_path / "empty")
    assert "is a file" in refused(tmp_path / "file.bin")
    assert "merge_and_unload" in refused(tmp_path / "adapter")
    assert "neither an existing folder nor a hub id" in refused(tmp_path / "nowhere")


def test_a_model_of_another_kind_is_named(tmp_path):
    # Would catch a headless model given a random head.
    torch.manual_seed(0)
    bare = BertModel(BertConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
                                num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    folder = checkpoints.save(bare, tmp_path / "bare")
    assert "BertModel" in refused(folder)


def test_weights_that_are_not_in_the_file_are_named(tmp_path):
    # Would catch numbers about a head that was never trained and is different on every run.
    from fisherscope.defaults import FisherConfig

    folder = checkpoints.bert(tmp_path / "model", masked=True)
    said = refused(folder, fisher=FisherConfig(likelihood="classification", halves=True))
    assert "classifier.weight" in said
    assert "random" in said


def test_pickled_weights_are_refused(tmp_path):
    # Would catch unpickling of a file that came from somewhere else.
    folder = checkpoints.llama(tmp_path / "model")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refused(folder)


def test_a_truncated_file_is_named(tmp_path):
    # Would catch a traceback from the reader of the file.
    folder = checkpoints.llama(tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert str(folder) in refused(folder)


def test_a_missing_tokenizer_is_named(tmp_path, llama):
    # Would catch an error about vocabulary files that names no fix.
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer.save_pretrained" in refused(folder)


def test_code_that_comes_with_a_checkpoint_does_not_run(tmp_path, llama):
    # Would catch trust_remote_code that is on by default.
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(described))
    refused(folder)
    assert not marker.exists()


def test_an_impossible_device_is_named(llama):
    # Would catch an error from deep inside torch.
    assert "device 'quantum'" in refused_device(llama)


def refused_device(model):
    run = RunConfig(model=str(model), tasks={"t": "t.jsonl"}, device="quantum")
    with pytest.raises(ConfigError) as caught:
        load_model(open_checkpoint(run), run)
    return str(caught.value)
