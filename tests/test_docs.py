"""The examples of README and docs run, in order, page by page."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from fisherscope.demo import build
from fisherscope.demo.corpora import Corpora, read_corpora
from fisherscope.demo.training import new_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder as the examples find it, made of less text and smaller models."""
    real = read_corpora()
    short = Corpora(
        documents={name: tuple(t[:4000] for t in ts[:8]) for name, ts in real.documents.items()},
        lessons=real.lessons[:40],
        held_out={
            name: tuple({k: v if k == "id" else v[:160] for k, v in row.items()} for row in rows)
            for name, rows in real.held_out.items()
        },
    )
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        module = import_module("fisherscope.demo.build")
        patch.setattr(module, "read_corpora", lambda: short)
        patch.setattr(module, "new_model", narrow)
        build(folder / "runs" / "demo", steps=2, tuning_steps=2, progress=False)
    return folder


def narrow(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    config = new_model(tokenizer, seed).config
    config.update({"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2})
    config.head_dim = config.hidden_size // config.num_attention_heads
    return LlamaForCausalLM(config)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


# Catches: an example that no longer runs after a name or an argument has changed.
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_examples_run(page: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)


# Catches: a page that is left out of the navigation, or a link to a page that is gone.
def test_pages_and_links_exist() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
