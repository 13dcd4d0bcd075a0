"""Which likelihood a model has, by its name, its configuration or its labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fisherscope.data import Example
from fisherscope.errors import LikelihoodError
from fisherscope.likelihoods import (
    NAMES,
    CausalLM,
    Classification,
    Likelihood,
    MaskedLM,
    Regression,
)

_BY_NAME: dict[str, type[Likelihood]] = {
    cls.name: cls for cls in (CausalLM, MaskedLM, Classification, Regression)
}


def resolve(model: nn.Module, name: str = "auto", examples: Sequence[Example] = ()) -> Likelihood:
    """The likelihood of a model.

    Args:
        model: The model; ``"auto"`` reads its class name and configuration.
        name: ``"auto"`` or one of ``"causal-lm"``, ``"masked-lm"``, ``"classification"``,
            ``"regression"``. Default: ``"auto"``.
        examples: Labels of these decide for models that do not say. Default: none.

    Returns:
        The likelihood.

    Raises:
        LikelihoodError: If the name is unknown or nothing says which one is meant.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]()
    if name != "auto":
        raise LikelihoodError(f"unknown likelihood {name!r}; choose one of {', '.join(NAMES)}")
    found = _from_model(model) or _from_labels(examples)
    if found is None:
        raise LikelihoodError(
            f"cannot tell the likelihood of a {type(model).__name__}; say likelihood= one of "
            f"{', '.join(NAMES)}"
        )
    return _BY_NAME[found]()


def _from_model(model: nn.Module) -> str | None:
    inner = getattr(model, "get_base_model", lambda: model)()
    words = (
        [type(inner).__name__, *(getattr(inner.config, "architectures", None) or [])]
        if hasattr(inner, "config")
        else []
    )
    for word in words:
        if word.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal-lm"
        if word.endswith("ForMaskedLM"):
            return "masked-lm"
        if word.endswith("Classification"):
            problem = getattr(inner.config, "problem_type", None)
            if problem == "multi_label_classification":
                raise LikelihoodError(
                    "multi-label classification has no likelihood here yet; score each label as "
                    "its own task with a single-label head"
                )
            single = getattr(inner.config, "num_labels", 2) == 1
            return "regression" if problem == "regression" or single else "classification"
    return None


def _from_labels(examples: Sequence[Example]) -> str | None:
    if not examples or examples[0].labels is None:
        return None
    labels = examples[0].labels
    if labels.is_floating_point():
        return "regression"
    return "classification" if labels.ndim == 0 or labels.numel() == 1 else None
