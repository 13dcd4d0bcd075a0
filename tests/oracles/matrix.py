"""The whole Fisher matrix by brute force in float64: explicit scores of every unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oracles import brute, models

Rows = list[Tensor]


def flat(gradients: brute.Tensors) -> Tensor:
    return torch.cat([g.reshape(-1) for g in gradients.values()]).double()


def empirical(name: str, unit: str) -> Tensor:
    """Scores [units, parameters] of the data's labels."""
    case, twin = models.case(name), brute.twin(name)
    found: Rows = []
    for row in case.rows:
        found += [flat(s) for s in brute.scores(twin, row, case.likelihood, unit)]
    return torch.stack(found)


def sampled(name: str, seed: int, draws: int) -> Tensor:
    """Scores [examples * draws, parameters] of the labels that a seed draws."""
    case, twin = models.case(name), brute.twin(name)
    found: Rows = []
    for row in case.rows:
        for draw in range(draws):
            labels = brute.draw_labels(twin, row, case.likelihood, seed, draw)
            found += [flat(s) for s in brute.scores(twin, row, case.likelihood, "example", labels)]
    return torch.stack(found)


def expected(name: str) -> Tensor:
    """Scores of every class of every token, times the root of its probability."""
    case, twin = models.case(name), brute.twin(name)
    own = brute.parameters(twin)
    found: Rows = []
    for row in case.rows:
        out = brute.outputs(twin, row)
        at, _ = brute.supervised(row, case.likelihood)
        tokens = out[at] if case.likelihood.endswith("lm") else out.reshape(1, -1)
        for token in tokens:
            real = case.likelihood == "regression"
            values = token if real else token.log_softmax(-1)
            for value in values:
                weight = 1.0 if real else float(value.detach().exp()) ** 0.5
                g = brute.gradients(value, list(own.values()))
                found.append(weight * flat(dict(zip(own, g, strict=True))))
    return torch.stack(found)


def linearised_hessian(name: str) -> Tensor:
    """Hessian, at zero, of the loss of the outputs ``f + J δ``: no scores, no roots."""
    case, twin = models.case(name), brute.twin(name)
    own = list(brute.parameters(twin).values())
    size = sum(p.numel() for p in own)
    total = torch.zeros(size, size, dtype=torch.float64)
    for row in case.rows:
        out = brute.outputs(twin, row)
        at, labels = brute.supervised(row, case.likelihood)
        tokens = out[at] if case.likelihood.endswith("lm") else out.reshape(1, -1)
        jacobian = torch.stack([
            flat(dict(enumerate(brute.gradients(value, own)))) for value in tokens.reshape(-1)
        ])
        centre = tokens.detach()

        def loss(moved: Tensor, centre: Tensor = centre, labels: Tensor = labels) -> Tensor:
            logits = centre + moved.reshape(centre.shape)
            if case.likelihood == "regression":
                return 0.5 * (logits - labels.to(logits)).square().sum()
            return nn.functional.cross_entropy(logits, labels, reduction="sum")

        zero = torch.zeros(centre.numel(), dtype=torch.float64)
        curvature = torch.autograd.functional.hessian(loss, zero)
        total += jacobian.T @ curvature @ jacobian
    return total


def kronecker(name: str) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Σ g gᵀ, Σ a aᵀ and the number of rows of every linear layer, from plain hooks.

    A row is a position that can carry gradient: for a causal model none after the last
    supervised one.
    """
    from transformers.pytorch_utils import Conv1D

    case, twin = models.case(name), brute.twin(name)
    layers = {p: m for p, m in twin.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    found: dict[str, tuple[Tensor, Tensor, int]] = {}
    for row in case.rows:
        seen: dict[str, list[tuple[Tensor, list[Tensor]]]] = {}

        def watch(path: str, seen=seen):
            def hook(_module, args, output):
                arrived: list[Tensor] = []
                output.register_hook(arrived.append)
                seen.setdefault(path, []).append((args[0].detach(), arrived))

            return hook

        handles = [m.register_forward_hook(watch(p)) for p, m in layers.items()]
        loss = brute.token_losses(twin, row, case.likelihood).sum()
        for handle in handles:
            handle.remove()
        loss.backward()
        twin.zero_grad(set_to_none=True)
        at, _ = brute.supervised(row, case.likelihood)
        length = row.inputs["input_ids"].shape[0] if "input_ids" in row.inputs else -1
        head = getattr(twin, "lm_head", None) or getattr(twin, "embed_out", None)
        for path, uses in seen.items():
            for a, arrived in uses:
                if not arrived:
                    continue
                a, g = a.reshape(-1, a.shape[-1]), arrived[0].reshape(-1, arrived[0].shape[-1])
                if case.likelihood.endswith("lm") and len(a) == length:
                    last = int(at.max()) + 1 if case.likelihood == "causal-lm" else length
                    rows = at if layers[path] is head else torch.arange(last)
                    a, g = a[rows], g[rows]
                if getattr(layers[path], "bias", None) is not None:
                    a = torch.cat([a, a.new_ones(len(a), 1)], 1)
                was = found.get(path, (0.0, 0.0, 0))
                found[path] = (was[0] + g.T @ g, was[1] + a.T @ a, was[2] + len(a))
    return found
