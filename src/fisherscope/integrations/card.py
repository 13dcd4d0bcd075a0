"""The card of a published Fisher: how it was made, in words that no name can turn into markup."""

from __future__ import annotations

import html
import re
from collections import Counter

import yaml

from fisherscope.structures import Fisher

_LOAD = """## Load it

```python
import fisherscope as fs

fisher = fs.from_hub("{repo_id}")
```

It is safetensors and JSON, checked against SHA-256 sums. Sums and counts are kept, so that a Fisher
of the same model, unit and structure over other examples can be added: `fisher + other`. What does
not fit is refused, with the field that differs.
"""


def card(fisher: Fisher, repo_id: str, model: str | None = None, data: str | None = None) -> str:
    """The ``README.md`` of a repository with a Fisher.

    Args:
        fisher: The Fisher.
        repo_id: Its repository.
        model: What is said about the model. Default: ``None``, nothing.
        data: What is said about the data. Default: ``None``, nothing.

    Returns:
        Markdown with YAML metadata.
    """
    identity = fisher.identity
    head = yaml.safe_dump(
        {"library_name": "fisherscope", "tags": ["fisherscope", "fisher-information"]},
        sort_keys=False,
    )
    sampled = identity.fisher_type == "mc"
    facts = {
        "model": model,
        "data": data,
        "structure": identity.structure,
        "labels": identity.fisher_type
        + (f", {identity.draws} draws, seed {identity.seed}" if sampled else ""),
        "unit": identity.unit,
        "likelihood": identity.likelihood,
        "examples": _count(fisher.n_examples)
        + (f", and {len(fisher.skipped)} skipped (not finite)" if fisher.skipped else ""),
        "tokens": _count(fisher.n_tokens),
        "units": _count(fisher.n_units),
        "parameters": f"{_count(fisher.n_parameters)} in {len(identity.parameters)} tensors",
        "trace per unit": _trace(fisher),
        "halves": "two disjoint halves of the examples" if fisher.halves else "none",
        "type of the weights": identity.dtype,
        "fingerprint of the model": identity.model_fingerprint,
        "fingerprint of the data": identity.data_fingerprint,
        "made with": f"fisherscope {identity.version}",
    }
    rules = Counter(rule.partition(":")[0] for rule in fisher.coverage.values())
    return "\n".join([
        f"---\n{head}---\n",
        f"# Fisher information{'' if model is None else f' of {plain(model)}'}\n",
        _table("what", "value", {k: v for k, v in facts.items() if v is not None}),
        _table("rule", "tensors", {rule: str(n) for rule, n in rules.most_common()}),
        _LOAD.format(repo_id=repo_id),
    ])


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is.

    Args:
        text: Any text.

    Returns:
        One line.
    """
    return re.sub(r"([\\`*_\[\]|~#$:@])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _table(left: str, right: str, rows: dict[str, str]) -> str:
    lines = [f"| {plain(name)} | {plain(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *lines, ""])


def _count(n: int) -> str:
    return f"{n:,}"


def _trace(fisher: Fisher) -> str:
    if not fisher.n_units:
        return "no unit was summed over"
    return f"{fisher.trace():.6g}, standard error {fisher.standard_error()['']:.2g}"
