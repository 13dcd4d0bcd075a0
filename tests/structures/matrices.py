"""Fishers of every structure from random sums, beside the explicit matrix that they stand for.

``CASES`` is the table: a new structure, or a new way of laying one out, is one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import block_diag

from fisherscope.specs import parse
from fisherscope.structures import BlockLayout, Fisher, Identity, Ledger

# In the model's order, which is not the order of the blocks below.
SHAPES = {
    "bias": (3,),  # its weight comes later
    "conv": (2, 3, 2, 1),
    "scale": (4,),
    "q": (3, 4),
    "k": (2, 4),
    "k_bias": (2,),
    "linear": (3, 4),
    "conv1d": (5, 3),  # [in, out], as HF's Conv1D stores it
    "up": (3, 2, 1, 2),  # [in, out, ...], as transposed convolutions store it
    "scalar": (),
}


@dataclass(frozen=True)
class Case:
    structure: str
    layout: tuple[BlockLayout, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        held = {n for b in self.layout for n in b.names} or self.names
        return {name: shape for name, shape in SHAPES.items() if name in held}


def kron(*names, **options):
    return BlockLayout("kronecker", names, **options)


def dense(*names):
    return BlockLayout("dense", names)


def diag(*names):
    return BlockLayout("diagonal", names)


def turned(layout):
    """The same blocks for an EKFAC."""
    factored = {"outputs_second", "inputs"}
    return tuple(
        BlockLayout("eigen", b.names, **{k: getattr(b, k) for k in factored}) if b.factored else b
        for b in layout
    )


FACTORED = {
    "": (kron("linear"),),
    "joint": (kron("linear", "bias"),),
    "separate": (kron("linear"), kron("conv"), diag("bias")),
    "transposed": (kron("conv1d", "bias", outputs_second=True),),
    "convolution": (kron("conv", "k_bias"), kron("up", outputs_second=True)),
    "shared": (kron("q"), kron("k", inputs="q"), kron("linear", inputs="q")),
    "shared joint": (kron("k", "k_bias"), kron("linear", "bias", inputs="k")),
    "mixed": (kron("up", "k_bias", outputs_second=True), diag("scale", "scalar"), kron("k")),
}
WIDEST = {"widest 2": "joint", "widest 3": "transposed", "widest 1": "shared"}

CASES = {
    "diagonal": Case("diagonal", names=("linear", "bias", "scalar", "conv")),
    "grouped": Case("grouped", names=("linear", "bias", "scalar", "conv")),
    "block": Case("block", (dense("linear"), dense("bias"), dense("conv"), diag("scalar"))),
    "block, layer": Case("block(per=layer)", (dense("linear", "bias"), dense("k_bias", "k"))),
    "dense": Case("dense", (dense("linear", "scalar", "bias"),)),
    **{f"kfac {k}": Case("kfac", layout) for k, layout in FACTORED.items()},
    **{f"ekfac {k}": Case("ekfac", turned(layout)) for k, layout in FACTORED.items()},
    **{f"kfac {w}": Case(f"kfac({w.replace(' ', '=')})", FACTORED[k]) for w, k in WIDEST.items()},
    **{
        f"ekfac {w}": Case(f"ekfac({w.replace(' ', '=')})", turned(FACTORED[k]))
        for w, k in WIDEST.items()
    },
}
BLOCKWISE = [name for name in CASES if CASES[name].layout]


def make(case, *, ids="abcde", seed=0, sums=None, dtype=torch.float64, **fields) -> Fisher:
    """A Fisher; ``fields`` go to its identity, ``draws`` above 1 means drawn labels."""
    case = CASES[case] if isinstance(case, str) else case
    rng = np.random.default_rng(seed)
    if sums is None:
        sums = {k: torch.from_numpy(np.asarray(v)) for k, v in random_sums(case, rng).items()}
        sums = {k: v if k.endswith(":rows") else v.to(dtype) for k, v in sums.items()}
    draws, unit = fields.pop("draws", 1), fields.pop("unit", "example")
    tokens = rng.integers(2, 7, len(ids))
    identity = {
        "fisher_type": "mc" if draws > 1 else "empirical",
        "unit": unit,
        "structure": case.structure,
        "likelihood": "causal-lm",
        "draws": draws,
        "seed": 0,
        "parameters": case.parameters,
        "model_fingerprint": "m",
        "data_fingerprint": f"{sum(ord(i) for i in ids):032x}",
        "dtype": "float32",
        "version": "0.1.0",
    }
    identity |= fields
    names = tuple(identity["parameters"])
    return Fisher.of_structure(case.structure)(
        identity=Identity(**identity),
        sums=sums,
        ledger=Ledger(tuple(ids), names, rng.random((len(ids), len(names))), tokens),
        coverage=dict.fromkeys(names, "linear"),
        n_units=len(ids) if unit == "example" else int(tokens.sum()),
        layout=case.layout,
    )


def explicit(fisher: Fisher) -> np.ndarray:
    """The matrix itself, summed over examples, in float64; never through the code under test."""
    shapes, start, places = fisher.identity.parameters, 0, {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        places[name] = np.arange(start, start + size).reshape(shape)
        start += size
    sums = {key: tensor.double().numpy() for key, tensor in fisher.sums.items()}
    whole = np.zeros((start, start))
    for name in () if fisher.layout else shapes:
        at = places[name].ravel()
        size = places[name].size // sums[name].size
        whole[at, at] = np.broadcast_to(sums[name] / size, shapes[name]).ravel()
    for block in fisher.layout:
        at = _places(block, places)
        whole[np.ix_(at.ravel(), at.ravel())] = _block(block, sums, at)
    return whole


def cut(size: int, widest: int | None) -> list[int]:
    """Sizes of contiguous, near-equal pieces."""
    return [len(p) for p in np.array_split(np.arange(size), math.ceil(size / (widest or size)))]


def random_sums(case: Case, rng) -> dict[str, np.ndarray]:
    shapes, widest = case.parameters, getattr(parse(case.structure), "widest", None)
    sums = {}
    for name in () if case.layout else shapes:
        shape = shapes[name]
        kept = case.structure == "diagonal" or len(shape) < 2
        sums[name] = rng.random(shape if kept else (shape[0], *[1] * (len(shape) - 1))) + 0.1
    for block in case.layout:
        first = block.names[0]
        if block.kind == "diagonal":
            sums |= {name: np.asarray(rng.random(shapes[name]) + 0.1) for name in block.names}
            continue
        if block.kind == "dense":
            size = sum(math.prod(shapes[name]) for name in block.names)
            sums[f"{first}:matrix"] = _moments(rng, size)
            continue
        rows, columns = _sides(block, shapes)
        for prefix, size in ((f"{first}:gradients", rows), (f"{block.inputs}:inputs", columns)):
            for i, n in enumerate(cut(size, widest)):
                piece = _moments(rng, n)
                sums.setdefault(
                    f"{prefix}.{i}",
                    piece if block.kind == "kronecker" else np.linalg.qr(piece)[0],
                )
        if block.kind == "kronecker":
            sums.setdefault(f"{block.inputs}:rows", np.float64(rng.integers(5, 50)))
        else:
            sums[f"{first}:eigenvalues"] = rng.random((rows, columns)) + 0.1
    return sums


def _moments(rng, size: int) -> np.ndarray:
    scores = rng.normal(size=(2 * size + 2, size))
    return scores.T @ scores


def _sides(block, shapes) -> tuple[int, int]:
    shape, joint = shapes[block.names[0]], len(block.names) - 1
    rows = shape[1] if block.outputs_second else shape[0]
    return rows, math.prod(shape) // rows + joint


def _places(block, places) -> np.ndarray:
    if not block.factored:
        return np.concatenate([places[name].ravel() for name in block.names])
    weight = places[block.names[0]]
    if block.outputs_second:
        weight = np.moveaxis(weight, 1, 0)
    columns = [weight.reshape(len(weight), -1), *(places[n][:, None] for n in block.names[1:])]
    return np.hstack(columns)


def _block(block, sums, at) -> np.ndarray:
    if block.kind == "diagonal":
        return np.diag(np.concatenate([sums[name].ravel() for name in block.names]))
    if block.kind == "dense":
        return sums[f"{block.names[0]}:matrix"]
    left = block_diag(*_pieces(sums, f"{block.names[0]}:gradients"))
    right = block_diag(*_pieces(sums, f"{block.inputs}:inputs"))
    if block.kind == "kronecker":
        return np.kron(left, right) / sums[f"{block.inputs}:rows"]
    q = np.kron(left, right)
    values = sums[f"{block.names[0]}:eigenvalues"]
    assert values.shape == at.shape
    return q @ np.diag(values.ravel()) @ q.T


def _pieces(sums, prefix) -> list[np.ndarray]:
    count = sum(key.rpartition(".")[0] == prefix for key in sums)
    return [sums[f"{prefix}.{i}"] for i in range(count)]
