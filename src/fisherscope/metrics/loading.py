"""A model and its tokenizer from a folder or the hub, or an error that says what to do."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fisherscope.errors import ConfigError, NonFiniteError
from fisherscope.metrics.run_config import RunConfig

_CLASSES: dict[str, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "masked-lm": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SHOWN = 5


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a model source, before its weights are read.

    Attributes:
        source: Folder or hub id.
        local: Whether the source is a folder; then the network is never touched.
        config: The Hugging Face configuration.
        tokenizer: The Hugging Face tokenizer.
        kind: Which sort of model it is, named like its likelihood.
        revision: Commit of a hub id; ``None`` for a folder.
    """

    source: str
    local: bool
    config: Any
    tokenizer: Any
    kind: str
    revision: str | None = None


def open_checkpoint(run: RunConfig) -> Checkpoint:
    """Read the configuration and the tokenizer of a run's model.

    Args:
        run: The run; ``model``, ``trust_remote_code`` and ``fisher.likelihood`` are used.

    Returns:
        What was found.

    Raises:
        ConfigError: If there is no such folder or hub id, or it is no checkpoint of a causal
            or masked language model or sequence classifier, or it has no tokenizer.
    """
    source, local = _source(run.source)
    options: dict[str, Any] = {
        "trust_remote_code": run.trust_remote_code,
        "local_files_only": local,
        "revision": None if local else run.revision,
    }
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise ConfigError(f"model {source}: {_why(error)}; {_fix(source, local)}") from error
    kind = _kind(source, config, run.fisher.likelihood)
    if not local:
        # Tokenizer and weights from the same commit, also if the branch moves meanwhile.
        options["revision"] = _commit(source, run.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        raise ConfigError(
            f"model {source} has no tokenizer that can be loaded: {_why(error)}; save it beside "
            "the weights with tokenizer.save_pretrained(…)"
        ) from error
    return Checkpoint(source, local, config, tokenizer, kind, options["revision"])


def load_model(checkpoint: Checkpoint, run: RunConfig) -> torch.nn.Module:
    """Read the weights and check that every one of them is there and finite.

    Args:
        checkpoint: What :func:`open_checkpoint` found.
        run: The run; ``dtype`` and ``device`` are used.

    Returns:
        The model in eval mode, on its device.

    Raises:
        ConfigError: If the weights cannot be read, some are missing, or there is no such
            device.
    """
    device = _device(run.device)
    try:
        model, info = _CLASSES[checkpoint.kind].from_pretrained(
            checkpoint.source,
            config=checkpoint.config,
            dtype=run.dtype if run.dtype == "auto" else getattr(torch, run.dtype),
            trust_remote_code=run.trust_remote_code,
            local_files_only=checkpoint.local,
            revision=checkpoint.revision,
            # A pickle can run any code when it is read.
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ConfigError(
            f"model {checkpoint.source}: the weights cannot be read: {_why(error)}; "
            "save them again with model.save_pretrained(…), which writes safetensors"
        ) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ConfigError(
            f"model {checkpoint.source} holds no weights for {_listed(missing)}, so they would "
            f"be random; train or save it as {type(model).__name__} first"
        )
    check_finite(model, checkpoint.source)
    return model.eval().to(device)


def check_finite(model: torch.nn.Module, source: str) -> None:
    """Refuse a model whose weights are not all finite.

    Args:
        model: The model.
        source: Where it came from, for the message.

    Raises:
        NonFiniteError: If a weight is NaN or infinite; the message names the parameters.
    """
    bad = []
    for name, weight in model.named_parameters():
        broken = weight.numel() - int(torch.isfinite(weight.detach()).sum())
        if broken:
            bad.append(f"{name} ({broken} of {weight.numel()})")
    if bad:
        raise NonFiniteError(
            f"model {source} has NaN or infinite weights in {_listed(bad)}; "
            "go back to a checkpoint from before the training diverged"
        )


def _source(model: str) -> tuple[str, bool]:
    path = Path(os.path.expanduser(model))
    if os.path.isdir(path):  # a name that no file can have is none either
        if (path / "config.json").is_file():
            return str(path), True
        if (path / "adapter_config.json").is_file():
            raise ConfigError(
                f"model {path} holds an adapter without its model; merge the two with "
                "merge_and_unload() and save the result, or load them yourself and call "
                "fisherscope.estimate"
            )
        raise ConfigError(
            f"model {path} has no config.json, so it is no Hugging Face checkpoint; give the "
            "folder that model.save_pretrained(…) wrote"
        )
    if os.path.exists(path):
        raise ConfigError(f"model {path} is a file; give the folder of the checkpoint")
    if not _HUB_ID.fullmatch(model) or model.startswith((".", "~")):
        raise ConfigError(f"model {model} is neither an existing folder nor a hub id like org/name")
    return model, False


def _commit(source: str, revision: str | None) -> str | None:
    # The cache keeps each commit's files in a folder of that name.
    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else revision


def _kind(source: str, config: Any, likelihood: str) -> str:
    if likelihood != "auto":
        return likelihood
    names = list(getattr(config, "architectures", None) or ())
    for name in names:
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal-lm"
        if name.endswith("ForMaskedLM"):
            return "masked-lm"
        if name.endswith("ForSequenceClassification"):
            problem = getattr(config, "problem_type", None)
            regression = problem == "regression" or getattr(config, "num_labels", 2) == 1
            return "regression" if regression else "classification"
    raise ConfigError(
        f"model {source} has architectures {names or 'none'} in its config.json; expected one "
        "ending in ForCausalLM, ForMaskedLM or ForSequenceClassification (choose with "
        "fisher.likelihood if the file is incomplete)"
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {_why(error)}") from error
    return device


def _why(error: BaseException) -> str:
    # Other libraries explain at length; their first line says what went wrong.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


def _fix(source: str, local: bool) -> str:
    if local:
        return "give a folder that model.save_pretrained(…) wrote"
    return f"there is no folder {source!r} here either; check the spelling and the network"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
