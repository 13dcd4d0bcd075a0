"""Bytes per parameter that a penalty takes, by what is kept where: measured, not computed.

What counts is the process's anonymous resident memory (files that are mapped are not), before and
after the penalty is made.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES = {
    "float32 model": {},
    "float32 model, bf16 Fisher": {"dtype": "bfloat16"},
    "float32 model, on disk": {"storage": "disk"},
    "bf16 model, bf16 Fisher": {"model": "bfloat16", "dtype": "bfloat16"},
    "bf16 model, bf16 Fisher, on disk": {
        "model": "bfloat16",
        "dtype": "bfloat16",
        "storage": "disk",
    },
    "LoRA": {"lora": True},
    "LoRA, bf16 Fisher": {"lora": True, "dtype": "bfloat16"},
    "LoRA, bf16 Fisher, on disk": {"lora": True, "dtype": "bfloat16", "storage": "disk"},
}
WIDTH, LAYERS = 2048, 2


def measure(known: dict[str, Any], save: Any, log: Any) -> None:
    """Fill in what is not known yet, in a process of its own."""
    if set(known) != set(CASES):
        log("  all")
        found = subprocess.run([sys.executable, __file__], check=True, capture_output=True)
        known.update(json.loads(found.stdout.splitlines()[-1]))
        save()


def _status(field: str) -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def main(options: dict[str, Any]) -> dict[str, Any]:
    """One case."""
    import torch

    import fisherscope as fs

    torch.set_num_threads(1)
    model: Any = torch.nn.Sequential(
        *(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
    )
    model.to(getattr(torch, options.get("model", "float32")))
    count = sum(p.numel() for p in model.parameters())
    data = (torch.randn(1, WIDTH, dtype=model[0].weight.dtype), torch.zeros(1, WIDTH))
    data = (data[0], data[1].to(data[0].dtype))
    fisher = fs.estimate(model, data, likelihood="regression", progress=False)
    if options.get("lora"):
        from peft import LoraConfig, get_peft_model

        names = [str(i) for i in range(LAYERS)]
        model = get_peft_model(model, LoraConfig(r=8, target_modules=names))
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    dtype = getattr(torch, options["dtype"]) if "dtype" in options else None
    storage = options.get("storage", "model")
    with tempfile.TemporaryDirectory() as place:
        folder = place if storage == "disk" else None
        # The first penalty of a process loads code.
        small = torch.nn.Linear(2, 2)
        rows = (torch.randn(2, 2), torch.zeros(2, 2))
        fs.EWC(
            small,
            fs.estimate(small, rows, likelihood="regression", progress=False),
            strength=1.0,
        ).add_gradient()
        before = _status("RssAnon")
        ewc = fs.EWC(model, fisher, strength=1.0, storage=storage, folder=folder, dtype=dtype)
        kept = _status("RssAnon") - before
        ewc.add_gradient()
        Path("/proc/self/clear_refs").write_text("5")
        resting = _status("VmRSS")
        ewc.add_gradient()
        step = _status("VmHWM") - resting
        return {
            "parameters": count,
            "kept": kept / count,
            "said": sum(ewc.nbytes.values()) / count,
            # In units of the largest parameter, because one is dealt with at a time.
            "step": step / (WIDTH * WIDTH),
        }


if __name__ == "__main__":
    print(json.dumps({name: main(options) for name, options in CASES.items()}))
