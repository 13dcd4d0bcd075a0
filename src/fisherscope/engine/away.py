"""Parameters that are elsewhere while their layers rest: in shards on all ranks, or offloaded.

FSDP2 (``fully_shard``) gathers a parameter just before the forward pass of the module that it
was applied to, the *host*, and takes it apart behind it; the hooks of accelerate fetch one from
memory or disk in the same way. Outside of its host such a parameter is a part of itself, or
nothing. So a displacement takes its place here: it has the parameter's whole shape, and is added
to the parameter whenever the host runs. Its gradient is the parameter's, for the examples of
this process only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fisherscope.distributed import Ranks
from fisherscope.engine.offloaded import offloaded
from fisherscope.engine.split import is_fully_sharded, is_host, is_split
from fisherscope.errors import CoverageError, ParameterError


class Displacement(nn.Parameter):
    """What a requested parameter is moved by, where the parameter can't be had itself; zero.

    It has the parameter's shape and holds a single element until something is added to it.

    Attributes:
        stored: What the model holds.
    """

    stored: Tensor


class Place(NamedTuple):
    """One of the places where a parameter is used, and whoever brings it there."""

    host: nn.Module
    module: nn.Module
    local: str


class Absent(Displacement):
    """A displacement of a parameter that is there only while its host runs.

    Attributes:
        places: Where it is used.
    """

    places: tuple[Place, ...]


def stored(parameter: nn.Parameter) -> Tensor:
    """The tensor that the model itself holds for a requested parameter.

    Args:
        parameter: A requested parameter.

    Returns:
        What a displacement takes the place of; any other parameter itself.
    """
    return parameter.stored if isinstance(parameter, Displacement) else parameter


def owners(model: nn.Module, requested: Mapping[str, nn.Parameter]) -> dict[tuple[int, str], str]:
    """Where requested parameters are used.

    Args:
        model: The model.
        requested: Name to parameter.

    Returns:
        Identity of a module and the parameter's name within it, to the requested name.
    """
    names = {id(stored(parameter)): name for name, parameter in requested.items()}
    found = {
        (id(module), local): names[id(p)]
        for module in model.modules()
        for local, p in module.named_parameters(recurse=False)
        if id(p) in names
    }
    for name, parameter in requested.items():
        if isinstance(parameter, Absent):
            # What an offloading hook leaves in the model is another object after each pass.
            found |= {(id(place.module), place.local): name for place in parameter.places}
    return found


def is_away(parameter: Tensor) -> bool:
    """Whether only a part of a parameter is here, or nothing.

    Args:
        parameter: What the model holds.

    Returns:
        Whether it is sharded, or offloaded.
    """
    return is_split(parameter) or parameter.device.type == "meta"


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks hold parts of the model's parameters.

    Args:
        model: Any module.

    Returns:
        Whether its passes send messages between ranks.
    """
    return any(is_split(p) for p in model.parameters())


def check_shards(model: nn.Module, ranks: Ranks) -> None:
    """Make sure that those who share a model's parameters share its examples as well.

    Args:
        model: Any module.
        ranks: The processes that share the examples; told which groups its passes go through.

    Raises:
        ParameterError: If they are others.
    """
    for name, parameter in model.named_parameters():
        size = parameter.device_mesh.size() if is_split(parameter) else ranks.world
        if size != ranks.world:
            raise ParameterError(
                f"parameter {name!r} is split over {size} processes, but {ranks.world} share the "
                "examples: every pass needs all of them. Leave distributed=True, and shard the "
                "model over all ranks of the process group"
            )
        if is_split(parameter) and ranks.world > 1:
            ranks.through(parameter.device_mesh.get_all_groups())


def rest(model: nn.Module) -> None:
    """Take apart what the last forward pass has left gathered; no message is sent.

    Args:
        model: Any module.
    """
    for module in model.modules():
        if is_host(module):
            module.reshard()


def recover(model: nn.Module) -> None:
    """Take apart what a forward or backward pass that has failed left gathered.

    Args:
        model: Any module. Hosts forget the pass, and gradients that are being reduced.
    """
    for module in model.modules():
        if is_host(module) and hasattr(module, "reset_iter_state"):  # torch 2.6 has no such thing
            # The outermost host does it for those inside, which refuse.
            with suppress(RuntimeError):
                module.reset_iter_state()


def device_of(model: nn.Module) -> torch.device:
    """Where a batch has to be.

    Args:
        model: Any module.

    Returns:
        The device on which its first layer computes; the CPU if nobody says.
    """
    first = next(model.parameters(), None)
    if first is None:
        return torch.device("cpu")
    if first.device.type != "meta":
        return first.device
    found = offloaded(model)
    return next(iter(found.values())).device if found else torch.device("cpu")


def held(model: nn.Module) -> list[Tensor]:
    """What is in memory of a model while its layers rest.

    Args:
        model: Any module.

    Returns:
        Its parameters and buffers, also offloaded ones that are not on a disk.
    """
    known = [*model.parameters(), *model.buffers()]
    return known + [kept.read() for kept in offloaded(model).values() if kept.place is not None]


def state(model: nn.Module) -> Mapping[str, Any]:
    """``state_dict()``, with whole tensors, each made when it is asked for.

    Args:
        model: Any module. If it is sharded, each tensor is a message between all ranks.

    Returns:
        Name to tensor.
    """
    return _State(model)


class _State(Mapping[str, Any]):
    def __init__(self, model: nn.Module):
        self._held = model.state_dict(keep_vars=False)
        by_place = offloaded(model)
        self._read: dict[str, Callable[[], Tensor]] = {}
        if by_place:
            for prefix, module in model.named_modules(remove_duplicate=False):
                for local in (*module._parameters, *module._buffers):
                    if (id(module), local) in by_place:
                        name = f"{prefix}.{local}" if prefix else local
                        self._read[name] = by_place[id(module), local].read

    def __getitem__(self, name: str) -> Any:
        held = self._held[name]
        if name in self._read and held.device.type == "meta":
            return self._read[name]()
        return held.full_tensor() if is_split(held) else held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def reachable(
    model: nn.Module, wanted: Mapping[str, nn.Parameter], further: Mapping[str, str]
) -> dict[str, nn.Parameter]:
    """Put displacements in the place of parameters that are away.

    Args:
        model: The model.
        wanted: Name to parameter.
        further: Further names of some, as :func:`tied` has them.

    Returns:
        Name to parameter, all of them whole. One that is away in a way that is not known raises
        :class:`ParameterError`.
    """
    away = {n: p for n, p in wanted.items() if is_away(p)}
    if not away:
        return dict(wanted)
    everything = dict(model.named_parameters(remove_duplicate=False))
    names = {id(p): name for name, p in away.items()}
    names |= {id(everything[more]): first for more, first in further.items() if first in away}
    places = _places(model, away, names)
    return {n: _absent(n, p, places[n]) if n in away else p for n, p in wanted.items()}


def _absent(name: str, parameter: nn.Parameter, found: tuple[Sequence[Place], Any]) -> Absent:
    places, device = found
    shared = is_split(parameter)
    if not places and not shared:
        raise ParameterError(
            f"parameter {name!r} is on the meta device, and no hook of accelerate brings it: load "
            "the weights before estimating"
        )
    if shared and not (places and is_fully_sharded(parameter)):
        raise ParameterError(
            f"parameter {name!r} is split over ranks ({', '.join(map(str, parameter.placements))}) "
            "in another way than torch's fully_shard does it alone: tensor parallelism is not "
            "supported; shard the model with fully_shard alone, or use it whole"
        )
    zero = torch.zeros((), device=device, dtype=parameter.dtype)
    made = Absent(zero.expand(parameter.shape), requires_grad=False)
    made.stored, made.places = parameter, tuple(places)
    return made


def _places(
    model: nn.Module, away: Mapping[str, nn.Parameter], names: Mapping[int, str]
) -> dict[str, tuple[list[Place], torch.device]]:
    """Name to the places of each parameter and the device it is brought to."""
    known = offloaded(model)
    found: dict[str, tuple[list[Place], torch.device]] = {
        name: ([], p.device) for name, p in away.items()
    }

    def walk(module: nn.Module, host: nn.Module | None, seen: set[int]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        host = module if bool(is_host(module)) else host
        for local, p in module.named_parameters(recurse=False):
            name = names.get(id(p))
            if name is None:
                continue
            brought = known.get((id(module), local))
            if brought is not None:
                found[name][0].append(Place(brought.host, module, local))
                found[name] = (found[name][0], brought.device)
            elif host is not None and is_split(p):
                found[name][0].append(Place(host, module, local))
        for child in module.children():
            walk(child, host, seen)

    walk(model, None, set())
    return found


@contextmanager
def added(parameters: Sequence[Absent]) -> Generator[None]:
    """Let layers compute with their absent parameters plus the displacements.

    Args:
        parameters: The displacements.

    Yields:
        Nothing.
    """
    inside: dict[nn.Module, list[tuple[Absent, nn.Module, str]]] = {}
    for parameter in parameters:
        for host, module, local in parameter.places:
            # Checkpointing runs a layer again without its host, in the backward pass.
            for running in dict.fromkeys((host, module)):
                inside.setdefault(running, []).append((parameter, module, local))
    with ExitStack() as stack:
        for running, what in inside.items():
            stack.enter_context(_around(running, what))
        yield


@contextmanager
def _around(running: nn.Module, what: list[tuple[Absent, nn.Module, str]]) -> Generator[None]:
    # Not in hooks: the parameters come and go in somebody else's, or within a replaced forward.
    attribute = "_old_forward" if "_old_forward" in vars(running) else "forward"
    before, own = vars(running).get(attribute), getattr(running, attribute)

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _moved(what):
            return own(*args, **kwargs)

    setattr(running, attribute, forward)
    try:
        yield
    finally:
        if before is None:
            delattr(running, attribute)
        else:
            setattr(running, attribute, before)


@contextmanager
def _moved(what: list[tuple[Absent, nn.Module, str]]) -> Generator[None]:
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for displacement, module, local in what:
            there = module._parameters[local]
            # What is no parameter has been moved already, by the host around its module.
            if isinstance(there, nn.Parameter):
                if is_away(there):
                    raise CoverageError(
                        f"{type(module).__name__}.{local} is used while it is sharded or "
                        "offloaded: its host does not bring it; leave it out of parameters="
                    )
                kept.append((module, local, there))
                moved: Any = there + displacement.to(there.dtype)
                module._parameters[local] = moved
        yield
    finally:
        for module, local, there in kept:
            module._parameters[local] = there
