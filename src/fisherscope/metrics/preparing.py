"""Everything that can be found wrong before the first long step of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fisherscope.data import Example, mask_tokens, read_jsonl
from fisherscope.data.rows import read_rows
from fisherscope.distributed import Ranks
from fisherscope.errors import ConfigError, DataError
from fisherscope.metrics.estimating import estimate_options
from fisherscope.metrics.loading import Checkpoint, load_model, open_checkpoint
from fisherscope.metrics.run_config import RunConfig
from fisherscope.planning import plan


@dataclass(frozen=True)
class PreparedRun:
    """A run whose input has been read and found sound.

    Attributes:
        config: The run with every path absolute.
        model: The model, in eval mode on its device.
        tasks: Task name to examples.
        plans: Task name to plan.
    """

    config: RunConfig
    model: torch.nn.Module
    tasks: dict[str, list[Example]]
    plans: dict[str, Any]


@dataclass(frozen=True)
class Read:
    """The input of a run, sound as far as can be told without the weights.

    Attributes:
        config: The run with every path absolute.
        checkpoint: Where its model is.
        tasks: Task name to examples.
        files: Task name to file.
    """

    config: RunConfig
    checkpoint: Checkpoint
    tasks: dict[str, list[Example]]
    files: dict[str, Path]


def read_run(config: RunConfig) -> Read:
    """Read and check a run's tasks, its model's configuration and tokenizer.

    Args:
        config: The run, of one model.

    Returns:
        What was read.

    Raises:
        DataError: If a task has a single row.
    """
    files = _files(config)
    checkpoint = open_checkpoint(config)
    tasks = {name: _read(name, path, checkpoint, config) for name, path in files.items()}
    for name, examples in tasks.items():
        if len(examples) < 2:
            raise DataError(
                f"task {name!r} ({files[name]}): one row only; a run compares two halves of each "
                "task, so give at least two"
            )
    return Read(absolute(config, checkpoint), checkpoint, tasks, files)


def prepare_run(config: RunConfig) -> PreparedRun:
    """Read and check tasks and model, and plan each estimate; all ranks together.

    Args:
        config: The run, of one model.

    Returns:
        What the run needs from here on.
    """
    found: list[tuple[Read, torch.nn.Module]] = []
    Ranks().each(lambda: found.append(_loaded(config)))
    read, model = found[0]
    plans = {}
    for name, examples in read.tasks.items():
        with _naming(name, read.files[name]):
            plans[name] = plan(
                model,
                examples,
                memory_limit=read.config.budget.limit,
                offload_folder=read.config.budget.folder,
                **estimate_options(config.fisher),
            )
    return PreparedRun(config=read.config, model=model, tasks=read.tasks, plans=plans)


def _loaded(config: RunConfig) -> tuple[Read, torch.nn.Module]:
    # Rows first, weights after: a broken line shows up before gigabytes are read.
    read = read_run(config)
    return read, load_model(read.checkpoint, config)


def absolute(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """The same run with paths that mean the same from any folder.

    Args:
        config: The run.
        checkpoint: Where its model was found; a hub id stays as it is.

    Returns:
        A new config.
    """
    return dataclasses.replace(
        config,
        model=str(_path(checkpoint.source)) if checkpoint.local else checkpoint.source,
        tasks={name: str(_path(path)) for name, path in config.tasks.items()},
        revision=checkpoint.revision,
        out=None if config.out is None else str(_path(config.out)),
        offload_folder=config.offload_folder and str(_path(config.offload_folder)),
    )


def _longest(asked: int, config: Any) -> int:
    """No longer than the model has positions for; some families keep the first ones free."""
    known = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    free = 2 if "roberta" in str(getattr(config, "model_type", "")) else 0
    return min([asked, *(n - free for n in known if isinstance(n, int) and n > free)])


def _real(example: Example) -> Example:
    """Scores are often written as whole numbers; a regression takes them as what they mean."""
    labels = example.labels
    return example if labels is None else dataclasses.replace(example, labels=labels.float())


def _path(text: str) -> Path:
    # Without ".." but through links as the user wrote them.
    return Path(os.path.abspath(Path(os.path.expanduser(text))))


def _files(config: RunConfig) -> dict[str, Path]:
    files = {name: _path(path) for name, path in config.tasks.items()}
    for name, path in files.items():
        if not os.path.isfile(path):
            what = "is a folder" if os.path.isdir(path) else "does not exist"
            raise DataError(f"task {name!r}: {path} {what}; give a JSONL file")
    return files


def _read(name: str, path: Path, checkpoint: Checkpoint, config: RunConfig) -> list[Example]:
    classifies = checkpoint.kind == "classification"
    labels = dict(getattr(checkpoint.config, "label2id", None) or {}) if classifies else None
    with _naming(name, path):
        _check_shape(path, checkpoint.kind)
        examples = read_jsonl(
            path,
            checkpoint.tokenizer,
            max_length=_longest(config.max_length, checkpoint.config),
            max_examples=config.fisher.max_examples,
            label_names=labels,
        )
        if checkpoint.kind == "regression":
            return [_real(example) for example in examples]
        if checkpoint.kind != "masked-lm":
            return examples
        tokenizer = checkpoint.tokenizer
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                f"the tokenizer of {checkpoint.source} has no mask token, which a masked "
                "language model needs; set tokenizer.mask_token and save it again"
            )
        for example in examples:
            if example.labels is None or bool((example.labels < 0).any()):
                raise DataError(
                    f"example {example.id!r} is not plain text; a masked language model predicts "
                    'tokens that it hides itself, so give rows with {"text": …} only'
                )
        return mask_tokens(
            examples,
            tokenizer.mask_token_id,
            tokenizer.all_special_ids,
            seed=config.fisher.seed,
        )


def _check_shape(path: Path, kind: str) -> None:
    # All rows of a file have a label or none has, so the first one tells.
    (row,) = read_rows(path, 1)
    labelled = row.kind == "label"
    if kind in {"classification", "regression"} and not labelled:
        raise DataError(
            f"{row.where}: no 'label', which a {kind} model needs; write rows "
            'with {"text": …, "label": …}'
        )
    if kind not in {"classification", "regression"} and labelled:
        raise DataError(
            f"{row.where}: a row with a 'label', but the model is a language model; remove that "
            "field, or give a ForSequenceClassification model"
        )


@contextlib.contextmanager
def _naming(name: str, path: Path) -> Generator[None]:
    # An error about an example says nothing about the file it came from.
    try:
        yield
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"task {name!r} ({path}): {error}") from error
