"""Full weights and moments of an engine, gathered from and scattered to any ZeRO stage and number of ranks.

The state is rank-independent: tensors under the model's own names. Getting and setting is collective: every rank calls,
in the same order. Files are `common/runs/checkpoint.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from beit.common.runs.checkpoint import AVERAGE, PortableState
from beit.common.training.engine import Engine, gathered, hp_tensor, set_hp_tensor
from beit.common.training.optimizer import MOMENTUM_BUFFER

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's."""
_STATES = (*MOMENTS, "step", MOMENTUM_BUFFER)
"""Whatever an optimizer keeps of a parameter."""
_AVERAGE_UPDATES, _LOSS_SCALE = "ema_updates", "loss_scale"


def gather_state(engine: Engine, *, with_moments: bool = True) -> PortableState | None:
    """Collect the full state on rank 0, or only the weights and their averages; the other ranks take part, get None."""
    keep = engine.world.is_main
    if engine.zero_stage == 0 and not keep:  # every rank holds everything
        return None
    model: dict[str, torch.Tensor] = {}
    optimizer: dict[str, torch.Tensor] = {}
    parameters = dict(engine.model.named_parameters())
    for name, parameter in parameters.items():
        value = _full_parameter(engine, parameter)
        states = _full_moments(engine, parameter) if with_moments else {}
        states |= _full_average(engine, parameter)
        if keep:
            model[name] = _to_cpu(value)
            optimizer |= {f"{kind}/{name}": _to_cpu(state) for kind, state in states.items()}
    if not keep:
        return None
    if engine.averages:
        optimizer[_AVERAGE_UPDATES] = _to_cpu(engine.average_updates)
        optimizer |= {f"{AVERAGE}/{name}": _to_cpu(value) for name, value in engine.statistics.items()}
    if engine.loss_scale is not None:
        optimizer[_LOSS_SCALE] = _to_cpu(engine.loss_scale.state())
    buffers = {name: _to_cpu(value) for name, value in engine.model.state_dict().items() if name not in parameters}
    return PortableState(model=model | buffers, optimizer=optimizer)


def scatter_state(
    engine: Engine, read_model: Callable[[str], torch.Tensor], read_optimizer: Callable[[str], torch.Tensor | None]
) -> None:
    """Overwrite the engine's weights, buffers, moments and step counts on all ranks.

    Args:
        engine: Freshly built, or in any other state.
        read_model: Full tensor of a name in the model's state dict.
        read_optimizer: Full tensor of a key of `PortableState.optimizer`; None when there is none.
    """
    parameters = dict(engine.model.named_parameters())
    for name, parameter in parameters.items():
        _set_parameter(engine, parameter, read_model(name))
        _set_moments(engine, parameter, {kind: read_optimizer(f"{kind}/{name}") for kind in _STATES})
        if engine.averages:
            average = read_optimizer(f"{AVERAGE}/{name}")
            # Saved without averages, and now averaged: it begins at the weights as they are.
            _set_average(engine, parameter, read_model(name) if average is None else average)
    for name, statistic in engine.statistics.items():
        average = read_optimizer(f"{AVERAGE}/{name}")
        statistic.copy_(read_model(name) if average is None else average)
    updates = read_optimizer(_AVERAGE_UPDATES)
    if updates is not None:
        engine.average_updates.copy_(updates)
    loss_scale = read_optimizer(_LOSS_SCALE)
    if loss_scale is not None and engine.loss_scale is not None:
        engine.loss_scale.restore(loss_scale)
    with torch.no_grad():
        for name, buffer in engine.model.state_dict().items():
            if name not in parameters:
                buffer.copy_(read_model(name))


def _full_parameter(engine: Engine, parameter: nn.Parameter) -> torch.Tensor:
    if engine.zero_stage == 0:
        return parameter.detach()
    if not parameter.requires_grad:
        with gathered(engine, parameter):
            return parameter.detach().clone()
    return hp_tensor(parameter, None)


def _full_moments(engine: Engine, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """Return AdamW's or Muon's states of a parameter; nothing if it was never updated."""
    if not parameter.requires_grad:
        return {}
    if engine.zero_stage == 0:  # the plain optimizer: DeepSpeed's accessors know nothing of it
        state = engine.optimizer.state.get(parameter, {})
        return {kind: state[kind] for kind in _STATES if kind in state}
    # By the optimizer's own count: skipped steps are none.
    step = torch.tensor(max((float(state["step"]) for state in engine.optimizer.state.values()), default=0.0))
    return {kind: hp_tensor(parameter, kind) for kind in MOMENTS} | {"step": step}


def _full_average(engine: Engine, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """Return the running average, if one is kept."""
    if not engine.averages or not parameter.requires_grad:
        return {}
    return {AVERAGE: engine.averages[parameter] if engine.zero_stage == 0 else hp_tensor(parameter, AVERAGE)}


@torch.no_grad()
def _set_average(engine: Engine, parameter: nn.Parameter, value: torch.Tensor) -> None:
    if not parameter.requires_grad:
        return
    value = value.to(engine.world.device)
    if engine.zero_stage == 0:
        engine.averages[parameter].copy_(value)
    else:
        set_hp_tensor(parameter, value, AVERAGE)


@torch.no_grad()
def _set_parameter(engine: Engine, parameter: nn.Parameter, value: torch.Tensor) -> None:
    value = value.to(engine.world.device)
    if engine.zero_stage > 0 and parameter.requires_grad:
        set_hp_tensor(parameter, value, None)
    # DeepSpeed's setter reaches the optimizer's copy only; the forward pass reads the module's.
    with gathered(engine, parameter, modify=True):
        parameter.copy_(value)


@torch.no_grad()
def _set_moments(engine: Engine, parameter: nn.Parameter, moments: dict[str, torch.Tensor | None]) -> None:
    present = {kind: value.to(engine.world.device) for kind, value in moments.items() if value is not None}
    if not parameter.requires_grad or not present:
        return
    if engine.zero_stage == 0:
        engine.optimizer.state[parameter] = {kind: value.clone() for kind, value in present.items()}
        return
    for kind in MOMENTS:
        set_hp_tensor(parameter, present[kind], kind)
    for flat in engine.flat_params():  # its accessors do not reach the step count; a wrong one changes the next update
        engine.optimizer.state[flat]["step"].copy_(present["step"])


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
