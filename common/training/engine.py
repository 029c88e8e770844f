"""DeepSpeed behind a small interface: build, forward and backward, step. The only module that imports it.

The optimizer is ours (`optimizer.py`), the schedule is set from outside, checkpoints are ours (`portable_state.py`);
DeepSpeed contributes gradient accumulation, the ZeRO partitions and communication. Where the settings leave the
arithmetic open it is bfloat16 on hardware that has it, else float32: a CPU without them emulates bfloat16 products, 40
times slower than float32 ones, measured on an AVX2 machine (docs/results.md).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from beit.common.errors import InputError
from beit.common.forecast.hardware import Precision
from beit.common.processes.distributed import World
from beit.common.runs.checkpoint import AVERAGE
from beit.common.training.config import TrainingConfig
from beit.common.training.engine_settings import deepspeed_json, zero_stage
from beit.common.training.optimizer import FiniteAdamW, LossScale, build_optimizer, check_optimizer
from beit.common.training.task import Task

logger = logging.getLogger(__name__)

_CPU_FEATURES = ("amx_bf16", "bf16", "sve_bf16")
"""Names under which torch reports units for bfloat16 products on x86 and Arm. AVX512-BF16 by itself is no such unit:
with it a training step is 1.3 to 1.6 times slower than in float32, at any width (docs/speedrun.md)."""
_CPU_FEATURES_BEFORE = (*_CPU_FEATURES, "avx512_bf16")
"""What "auto" went by when runs were begun that go on now."""


class LossModule(nn.Module):
    """The model together with its loss, so that DeepSpeed's forward hooks surround both.

    Autocast is entered here because the engine's forward switches off one that was entered outside.
    """

    def __init__(self, task: Task, autocast: Callable[[], Any]) -> None:
        super().__init__()
        self.model = task.model
        self._task, self._autocast = task, autocast

    def forward(self, batch: Mapping[str, Any], step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss (float32 scalar) and detached metrics of one micro-batch."""
        with self._autocast():
            loss, metrics = self._task.forward(self.model, batch, step)
        return loss.float(), metrics


class Engine:
    """A model under training: the task's, initialised identically on all ranks and moved to the device.

    Args:
        task: What is trained.
        config: Its settings.
        world: The ranks.
        before: Arithmetic of the run that goes on, if one does.
    """

    def __init__(self, task: Task, config: TrainingConfig, *, world: World, before: Precision | None = None) -> None:
        model = task.model
        self.model, self.world = model.to(world.device), world
        self.precision = choose_precision(config.train.precision, world, before=before)
        num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        settings = deepspeed_json(config, task.data.plan, num_trained=num_trained)
        self.zero_stage: int = settings["zero_optimization"]["stage"]
        groups = [group for group in task.param_groups() if group["params"]]
        self.optimizer = build_optimizer(config.optimizer, groups, model, zero_stage=self.zero_stage)
        self._base_weight_decay = [group["weight_decay"] for group in self.optimizer.param_groups]
        module = LossModule(task, self.autocast)
        try:
            self._engine = _initialize(module, self.optimizer, settings, world)
        except ValueError as error:
            # DeepSpeed checks its settings with pydantic, whose error is one; ours would be a bug.
            if config.deepspeed.config is None or type(error).__name__ != "ValidationError":
                raise
            reason = " ".join(str(error).partition("[type=")[0].split())
            raise InputError(f"deepspeed.config ({config.deepspeed.config}) is refused: {reason}") from None
        if self.zero_stage == 0 and world.world_size == 1:
            # Alone, there is nobody to exchange gradients with; DeepSpeed would copy all of them to a buffer and back.
            self._engine.enable_backward_allreduce = False
        self.loss_scale = LossScale(world.device) if self.precision == "fp16" else None
        """Only in float16."""
        self.skipped = self._excused = torch.zeros((), device=world.device)
        """Float scalar on the device, 1 when the last step was skipped; the same on every rank."""
        self.averages: dict[torch.Tensor, torch.Tensor] = {}
        """Running average (`ema.py`) of each tensor this rank's optimizer updates; empty where none is kept."""
        self.statistics: dict[str, torch.Tensor] = {}
        """Running average of each running statistic of a batch norm, by its name; the same on every rank."""
        self.average_updates = torch.zeros((), device=world.device)
        """Float scalar: updates that went into the averages."""
        if config.train.ema_decay is not None:
            self._create_averages()
        if self.zero_stage > 0:
            self._create_moments()

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's wrapper around the optimizer; only at ZeRO 1 to 3."""
        return self._engine.optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes: matrix products of half precision over fp32 weights, or nothing."""
        return autocast_to(self.precision, self.world.device)

    def set_schedule(self, *, lr: float, weight_decay_factor: float) -> None:
        """Set the next step's learning rate (times each group's `lr_scale`) and scale the groups' weight decay."""
        # The engine's groups are the optimizer's; between two steps all of them are in place at every ZeRO stage.
        for group, weight_decay in zip(self.optimizer.param_groups, self._base_weight_decay, strict=True):
            group["lr"] = lr * group.get("lr_scale", 1.0)
            group["weight_decay"] = weight_decay * weight_decay_factor

    def forward_backward(self, batch: Mapping[str, Any], step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Add one micro-batch's gradients, averaged over the step.

        Returns:
            The detached loss and metrics, on the device.
        """
        loss, metrics = self._engine(batch, step)
        self._engine.backward(self._scaled(loss))
        self.optimizer.bad_loss = torch.maximum(self.optimizer.bad_loss, (~torch.isfinite(loss.detach())).float())
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch
        return loss.detach(), metrics

    def step(self) -> None:
        """Clip and apply the accumulated gradients, unless some rank's are not finite."""
        skipped_before = self._engine.skipped_steps
        self.optimizer.found_inf = torch.zeros_like(self.optimizer.bad_loss)
        self._engine.step()
        self.skipped, bad_loss = self.optimizer.found_inf, self.optimizer.bad_loss
        if self._engine.skipped_steps > skipped_before:
            # ZeRO 1 to 3 refuse a non-finite norm, on all ranks, before they reach the optimizer.
            self.skipped = torch.ones_like(self.skipped)
            if self.loss_scale is not None and self.world.world_size > 1:
                torch.distributed.all_reduce(bad_loss, op=torch.distributed.ReduceOp.MAX)
        if self.loss_scale is not None:
            self._excused = self.loss_scale.update(self.skipped, bad_loss)
        self.optimizer.bad_loss = torch.zeros_like(bad_loss)

    def verdict(self) -> torch.Tensor:
        """Return a float scalar on the device: 0 the last step was applied, 1 skipped, 2 skipped to lower the scale."""
        return self.skipped + self._excused

    def _scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Hand the loss scale to whoever is to take it out of the gradients again."""
        if self.loss_scale is None:
            return loss
        scale = self.loss_scale.scale
        if self.zero_stage == 0:
            self.optimizer.loss_scale = scale
            return loss * scale
        zero = self.zero_optimizer  # scales and unscales itself; its setter compares, which waits for the device
        zero.custom_loss_scaler, zero.external_loss_scale = True, scale
        return loss

    def grad_norm(self) -> float:
        """Return the global L2 norm before clipping of the last step; waits for the device."""
        norm = self.optimizer.grad_norm if self.zero_stage == 0 else self._engine.get_global_grad_norm()
        return float(norm)

    def close(self) -> None:
        """Release hooks and buffers, so that another engine can follow in the same process."""
        self._engine.destroy()

    def flat_params(self) -> list[torch.Tensor]:
        """Return the flat fp32 tensors this rank's optimizer updates at ZeRO 1 to 3."""
        if self.zero_stage == 3:
            return list(self.zero_optimizer.fp32_partitioned_groups_flat)
        return list(self.zero_optimizer.single_partition_of_fp32_groups)

    def _create_averages(self) -> None:
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        weights = self.flat_params() if self.zero_stage > 0 else trained
        self.averages = {weight: weight.detach().clone() for weight in weights}
        self.statistics = {name: value.clone() for name, value in running_statistics(self.model).items()}

    def _create_moments(self) -> None:
        """Give every flat tensor its moments now.

        AdamW would create them in its first step. DeepSpeed 0.19 links them to the parameters right after the first
        group's first step, when those of later groups would still be missing, and reading them would then fail on some
        ranks and hang the others.
        """
        for flat in self.flat_params():
            self.optimizer.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
            if self.averages:  # one more state, so that DeepSpeed's accessors find it by parameter, too
                self.optimizer.state[flat][AVERAGE] = self.averages[flat]
        if self.zero_stage < 3:
            self.zero_optimizer._lazy_init_hp_params_optimizer_state()


def check_engine(task: Task, config: TrainingConfig) -> None:
    """Refuse settings that no engine for this task could have."""
    check_optimizer(config.optimizer, task.model, zero_stage=zero_stage(config))


def running_statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that batch norms normalise by outside of training, by name: they belong to weights."""
    return {
        f"{name}.{kind}" if name else kind: statistic
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for kind in ("running_mean", "running_var")
        if (statistic := getattr(module, kind)) is not None
    }


def autocast_to(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of forward passes in a precision: none for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def has_native_bf16(device: torch.device, features: Sequence[str] = _CPU_FEATURES) -> bool:
    """Say whether a training step in bfloat16 is quicker than in float32 on `device`; a CPU, by what it has."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Not in every torch that pyproject.toml allows.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in features)


def choose_precision(
    setting: Literal["auto", "fp32", "bf16", "fp16"], world: World, *, before: Precision | None = None
) -> Precision:
    """Return the arithmetic to train in, the same on every rank; "auto" takes bf16 where all are quicker in it.

    A run that earlier versions began in bf16 (`before`) goes on as they would, so that it ends as it would have.
    """
    went_by = _CPU_FEATURES_BEFORE if setting == "auto" and before == "bf16" else _CPU_FEATURES
    lacking = bool(world.max_of([float(not has_native_bf16(world.device, went_by))])[0])
    if setting == "bf16" and lacking and world.is_main:
        logger.warning(
            "train.precision is bf16, with which this %s is slower than fp32 would be; use auto or fp32",
            "processor" if world.device.type == "cpu" else world.device.type,
        )
    if setting == "fp16" and world.device.type == "cpu" and world.is_main:
        logger.warning("train.precision is fp16, which is for GPUs; on a CPU it is many times slower than fp32")
    if setting == "auto":
        return "fp32" if lacking else "bf16"
    return setting


def hp_tensor(parameter: nn.Parameter, kind: str | None) -> torch.Tensor:
    """Return the full float32 master weight (None) or moment ("exp_avg", "exp_avg_sq") at ZeRO 1 to 3; collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    value = safe_get_full_fp32_param(parameter) if kind is None else safe_get_full_optimizer_state(parameter, kind)
    assert value is not None, "DeepSpeed does not know this parameter"
    return value  # type: ignore[no-any-return]


def set_hp_tensor(parameter: nn.Parameter, value: torch.Tensor, kind: str | None) -> None:
    """Overwrite the optimizer's copy of a weight (None) or a moment at ZeRO 1 to 3."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if kind is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, kind)


def gathered(engine: Engine, parameter: nn.Parameter, *, modify: bool = False) -> AbstractContextManager[Any]:
    """Make `parameter` whole inside the block; at ZeRO 3 collective, and with `modify` rank 0's changes are kept."""
    if engine.zero_stage < 3:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter], modifier_rank=0 if modify else None)  # type: ignore[no-any-return]


def _initialize(module: nn.Module, optimizer: FiniteAdamW, config: dict[str, Any], world: World) -> Any:
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before the import, which probes for devices
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of every optimizer that is not its own
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # DeepSpeed's calls
    if world.device.type == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at the first start, which needs a compiler and ninja; ranks
        # that wait in it spin for ever when a peer is killed. gloo needs neither and notices.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine
