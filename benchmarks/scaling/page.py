"""docs/scale.md and its plot, from the figures in results/scale.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from scaling import shapes

DOCS = Path(__file__).resolve().parents[2] / "docs"
PLOT = DOCS / "images" / "scale.png"
# By hand: memory.limit_in_bytes of a cgroup around the process, halves=True, batch_size=1.
CGROUP = """. Under a hard limit: in a control group
of 2.1 GB, of which the process with the 124 M model takes 1.06 GB before it begins, an estimate
with halves (1.5 GB of sums; 8 sequences, one at a time) ends with `memory_limit="250MB"` in 73 s;
without a limit the system kills it"""
# Okabe and Ito's colours, and a mark each, so that colour is not needed to tell them apart.
LOOKS = {"diagonal": ("#0072b2", "o"), "grouped": ("#d55e00", "s")}

HEAD = """# Scale

How long an estimate takes and how much memory, over {sizes} sizes of GPT-2 with random weights
and GPT-2's vocabulary of 50,257: {sequences} sequences of {length} tokens, {batch} at a time, under
`memory_limit="{limit}"`, in fp32 on one thread of a machine with 2 cores and 24 GiB whose other
core was busy. Seconds are processor time; seconds by the clock are beside it.
`python benchmarks/scale.py` measures, `--page` makes this page.

"""

EXPLAINED = """
Memory is what is added to the process with the model loaded (the kernel's high-water mark, freed
memory given back at once), and the plan's figure is `fs.plan(...).memory_bytes`, made before. The
sums of a pass are within the limit, and so are the gradients and squares in the verification of the
rules against autograd; the rest is activations and, with this vocabulary, the logits of a batch.
Where the sums are over the limit, each pass takes a part of them, and a finished part goes to disk.

"on disk" is `offload_folder=` without a limit: all sums are in memory-mapped files, one pass adds
to them, and memory is the process's own, without the files' pages, which the system takes back when
it needs them{cgroup}.

![seconds and memory over parameters](images/scale.png)

"""


def write(results: dict[str, Any]) -> None:
    """Make the page and the plot."""
    found = list(results.values())
    draw(found)
    text = HEAD.format(
        sizes=len({one["size"] for one in found}),
        sequences=shapes.SEQUENCES,
        length=shapes.LENGTH,
        batch=shapes.BATCH,
        limit=shapes.MEMORY_LIMIT,
    )
    text += table(found) + EXPLAINED.format(cgroup=CGROUP) + extrapolation(found)
    (DOCS / "scale.md").write_text(text, encoding="utf-8")


def table(found: list[dict[str, Any]]) -> str:
    """One row per size and structure."""
    lines = [
        "| model | structure | passes | seconds | planned | clock | memory | planned | sums |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        lines.append(
            f"| {one['parameters'] / 1e6:.0f} M ({one['layers']} layers of {one['width']}) "
            f"| {one['structure']} | {one['rounds']} "
            f"| {one['seconds_cpu']:.0f} | {one['seconds_planned']:.0f} "
            f"| {one['seconds_wall']:.0f} | {gb(one['bytes_peak'])} | {gb(one['bytes_planned'])} "
            f"| {gb(one['bytes_sums'])} |"
        )
    return "\n".join(lines) + "\n"


def gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def draw(found: list[dict[str, Any]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for structure, (colour, mark) in LOOKS.items():
        own = [one for one in found if one["structure"] == structure]
        size = [one["parameters"] / 1e6 for one in own]
        for axes, key, scale in ((left, "seconds", 1), (right, "bytes", 1e9)):
            measured = "seconds_cpu" if key == "seconds" else "bytes_peak"
            style = {"color": colour, "marker": mark, "markersize": 5}
            axes.plot(size, [one[measured] / scale for one in own], label=structure, **style)
            planned = [one[f"{key}_planned"] / scale for one in own]
            axes.plot(size, planned, linestyle=":", fillstyle="none",
                      label=f"{structure}, planned", **style)  # fmt: skip
    for axes, label in ((left, "processor seconds"), (right, "memory beside the model (GB)")):
        axes.set(xscale="log", yscale="log", xlabel="parameters (millions)", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    for one in found:
        if one["rounds"] > 1:
            place = one["parameters"] / 1e6, one["seconds_planned"]
            left.annotate(
                f"{one['rounds']} passes", place, (-4, 6), textcoords="offset points",
                ha="right", fontsize=8,
            )  # fmt: skip
    left.legend(frameon=False, fontsize=8)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=140)
    plt.close(figure)


def extrapolation(found: list[dict[str, Any]]) -> str:
    """Arithmetic for models that were not run."""
    diagonals = [one for one in found if one["structure"] == "diagonal"]
    largest = max(diagonals, key=lambda one: one["parameters"])
    positions = shapes.SEQUENCES * shapes.LENGTH
    work = 6 * largest["parameters"] * positions
    speed = work * largest["rounds"] / largest["seconds_cpu"]
    rows = []
    for name, parameters in (("7 B", 7e9), ("70 B", 70e9)):
        total = 6 * parameters * positions
        rows.append(
            f"| {name} | {total:.1e} | {total / speed / 3600:.0f} h "
            f"| {2 * parameters / 1e9:.0f} GB "
            f"| {4 * parameters / 1e9:.0f} GB | {(2 + 4) * parameters / 1e9:.0f} GB "
            f"| {2 * parameters / 1e9 + 8:.0f} GB |"
        )
    ran = (
        f"{largest['parameters'] / 1e6:.0f} M model's diagonal did {work:.2e} of them in each of "
        f"{largest['rounds']} passes, {largest['seconds_cpu']:.0f} s together"
    )
    return f"""## 7 and 70 billion parameters, by arithmetic

Nothing in this section was run. A pass takes about `6 · parameters · positions` operations: two
each for the forward pass, for the gradients of the activations, and for the squares. The
{ran} (verifying and attention included):
{speed / 1e9:.0f} GFLOP/s on one core. At that speed, for the same {positions:,} positions:

| model | operations | on such a core | weights, bf16 | sums, fp32 | together | with 8 GB of sums |
|---|--:|--:|--:|--:|--:|--:|
{chr(10).join(rows)}

- Time grows with parameters × positions: ten times the examples take ten times as long.
- On accelerators of 80 GB the weights and sums of 7 B fit on one ({2 * 7 + 4 * 7} GB), those of
  70 B need {-(-6 * 70 // 80)} at least before activations. `"grouped"` keeps one number per output
  row: its sums are three orders of magnitude smaller, and 70 B then needs room for weights only.
- A `memory_limit` of half the sums takes two passes, and so on: time for memory, one for one. The
  last column is `memory_limit="8GB"` before activations: 4 passes for 7 B, 35 for 70 B. Finished
  sums go to disk (from an accelerator: to the CPU's memory, or to `offload_folder=`).
- `offload_folder=` alone takes one pass, and on a CPU reads and writes what memory can't hold of
  the sums once per batch: 28 GB to and fro for 7 B, about a minute on a disk of 1 GB/s, beside the
  {6 * 7e9 * 1024 / speed / 60:.0f} minutes of such a core for a batch of 1,024 positions.
- Verifying takes 4 GiB at most beside the weights, or the `memory_limit`, and passes over two short
  examples for each part of the parameters.
- The squares are made in fp32, whatever the model's format: an accelerator's bf16 speed counts for
  four of the six operations only.
"""
