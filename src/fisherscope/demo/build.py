"""Build the demo: two small models and three tasks from nothing but Python itself."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from fisherscope.data import Example, read_jsonl
from fisherscope.data.examples import is_count
from fisherscope.demo.artifacts import MODELS, TASKS, DemoArtifacts, find, publish
from fisherscope.demo.corpora import Corpora, Row, read_corpora
from fisherscope.demo.tokenizer import train_tokenizer
from fisherscope.demo.training import new_model, text_batches
from fisherscope.errors import ParameterError, StoreError
from fisherscope.likelihoods import CausalLM
from fisherscope.metrics.run_folder import nearest_folder, writing
from fisherscope.studies.tuning import Schedule, fine_tune, row_batches

STEPS, TUNING_STEPS = 1000, 120
WINDOW = 128
# There is twenty times more code than prose: in proportion, prose would hardly be learnt.
CODE_ROWS, PROSE_ROWS, LESSON_ROWS = 3, 1, 16
BASE_RATE, TUNING_RATE = 1.5e-3, 1e-3


def build(
    out: Path | str,
    *,
    seed: int = 0,
    steps: int = STEPS,
    tuning_steps: int = TUNING_STEPS,
    progress: bool = True,
) -> DemoArtifacts:
    """Build the demo's models and tasks in a folder, or reuse what an earlier call built.

    The folder gets ``models/base``, ``models/instruct`` (ordinary checkpoints with their
    tokenizer), ``tasks/{code,prose,qa}.jsonl`` (held-out rows) and ``manifest.json``. A
    complete build with the same settings is reused; one that is partial, changed or made
    with other settings is replaced. Nothing is written unless everything has succeeded.

    A Python without most of its library's source files is refused with a ``DataError``.

    Args:
        out: The folder; other files in it are left alone.
        seed: Of the first weights and of the order of the training data; the tasks are the
            same for every seed.
        steps: Training steps of the base model.
        tuning_steps: Training steps of the instruct model, counted from the base model.
        progress: Whether to show progress bars.

    Returns:
        Where everything is, with the training losses.

    Raises:
        ParameterError: If ``steps`` or ``tuning_steps`` is not a positive integer, or
            ``seed`` not a non-negative one.
        StoreError: If the folder cannot be written, or holds other things of these names.
    """
    for name, value in (("steps", steps), ("tuning_steps", tuning_steps)):
        if not is_count(value):
            raise ParameterError(f"{name} is {value!r}: pass a positive integer")
    if seed != 0 and not (is_count(seed) and seed < 2**63):
        raise ParameterError(f"seed is {seed!r}: pass an integer from 0 to 2**63 - 1")
    start = time.monotonic()
    out = Path(os.path.expanduser(out)).absolute()
    settings = _settings(seed=seed, steps=steps, tuning_steps=tuning_steps)
    if earlier := find(out, settings):
        return earlier
    folder = nearest_folder(out)
    # A minute's training is in vain if the folder turns out to be read-only.
    with writing(folder), tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0")

    corpora = read_corpora()
    texts = [text for task in corpora.documents.values() for text in task]
    tokenizer = train_tokenizer(texts)
    base = new_model(tokenizer, seed)
    streams = [(corpora.documents["code"], CODE_ROWS), (corpora.documents["prose"], PROSE_ROWS)]
    base_losses = fine_tune(
        base,
        text_batches(tokenizer, streams, WINDOW),
        Schedule(steps=steps, peak=BASE_RATE),
        likelihood=CausalLM(),
        seed=seed,
        label="base model",
        progress=progress,
    )
    instruct = copy.deepcopy(base)
    instruct_losses = fine_tune(
        instruct,
        row_batches(_lessons(corpora, tokenizer), LESSON_ROWS),
        Schedule(steps=tuning_steps, peak=TUNING_RATE),
        likelihood=CausalLM(),
        seed=seed,
        label="instruct model",
        progress=progress,
    )

    def fill(stage: Path) -> None:
        models: dict[str, LlamaForCausalLM] = {"base": base, "instruct": instruct}
        for name, model in models.items():
            model.save_pretrained(stage / MODELS / name)
            tokenizer.save_pretrained(stage / MODELS / name)
        (stage / TASKS).mkdir()
        for name, rows in corpora.held_out.items():
            _write_rows(stage / TASKS / f"{name}.jsonl", rows)

    content = {
        "settings": settings,
        "train_losses": {"base": base_losses, "instruct": instruct_losses},
        "seconds": round(time.monotonic() - start, 1),
    }
    try:
        with writing(out), _silent_saving():
            return publish(out, content, fill)
    except SafetensorError as error:
        raise StoreError(f"{out} cannot be written: {error}; is there room on the disk?") from error


@contextmanager
def _silent_saving() -> Generator[None]:
    # transformers shows a bar for every file of weights; here each takes a moment.
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _settings(**chosen: int) -> dict[str, Any]:
    # All that the result depends on: the choices, the library's sources, and this code.
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return {**chosen, "python": platform.python_version(), "code": code.hexdigest()}


def _lessons(corpora: Corpora, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    # Through a file, so that training sees the tokens that an analysis of the task sees.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lessons.jsonl"
        _write_rows(path, corpora.lessons)
        return read_jsonl(path, tokenizer)


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(lines, encoding="utf-8", newline="\n")
