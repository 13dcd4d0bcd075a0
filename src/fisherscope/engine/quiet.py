"""The model as estimation needs it, and afterwards exactly as it was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fisherscope.engine.away import device_of, recover, rest


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Put a model into eval mode with every parameter frozen; restore it also on errors.

    Parameters, buffers, ``.grad``, ``requires_grad``, the train/eval mode of every module
    and the random state come back as they were. Layers with gradient checkpointing
    enabled keep it: they checkpoint only while they themselves are in training mode, so
    just these wrappers stay in it, with their own dropout rates at zero.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    rest(model)
    modes = {module: module.training for module in model.modules()}
    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    placeholders = [
        (module, local, parameter)
        for module in modes
        for local, parameter in module._parameters.items()
        if parameter is not None and parameter.device.type == "meta"
    ]
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    rates: list[tuple[Any, str, float]] = []
    device = device_of(model).type
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        model.eval()
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                # Some families read the rate from the configuration at every call.
                for holder in (module, getattr(module, "config", None)):
                    for name, value in list(vars(holder).items() if holder is not None else ()):
                        if "drop" in name and isinstance(value, float) and value:
                            rates.append((holder, name, value))
                            setattr(holder, name, 0.0)
                module.training = True
        for parameter, trainable in frozen.items():
            if trainable:
                parameter.requires_grad_(False)
        # Ambient modes of the caller would silently change or remove the scores.
        with torch.inference_mode(False), torch.autocast(device, enabled=False):
            yield
    except BaseException:
        recover(model)
        raise
    finally:
        rest(model)
        for holder, name, value in rates:
            setattr(holder, name, value)
        for module, training in modes.items():
            module.training = training
        for module, local, parameter in placeholders:
            # Each use of an offloaded parameter leaves another one, which knows of no ties.
            module._parameters[local] = parameter
        for parameter, trainable in frozen.items():
            if parameter.requires_grad != trainable:
                parameter.requires_grad_(trainable)
            parameter.grad = gradients[parameter]
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
