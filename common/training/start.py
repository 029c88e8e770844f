"""How a training begins: its directory opened, all that is wrong refused, the model built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from beit.common.errors import InputError, require
from beit.common.processes.distributed import World
from beit.common.runs.layout import MICRO_BATCH, TOTAL_STEPS
from beit.common.runs.run_dir import RunDirectory, abandon_run, begin_run, open_run
from beit.common.training.config import TrainingConfig
from beit.common.training.engine import check_engine
from beit.common.training.engine_settings import zero_stage
from beit.common.training.micro_batches import settle_micro_batch
from beit.common.training.outlook.foretelling import look_ahead
from beit.common.training.saver import check_record, check_shapes
from beit.common.training.speed import check_speed
from beit.common.training.task import EndsSteps, OverwritesWeights, Task


def start_run(
    task: Task, config: TrainingConfig, *, path: Path, resume: str, world: World, free_keys: Sequence[str] = ()
) -> RunDirectory:
    """Open the directory of a run, see `open_run`, and build the model; all ranks call this.

    Nothing in it is rewritten before the data are known to be those of the run, and the model can be built.
    """
    run = open_run(path, config, world=world, resume=resume, free_keys=free_keys, sync_to=config.run.sync_to)
    checkpoint = run.checkpoint
    try:
        if checkpoint is not None:
            check_record(checkpoint)
            changed = {change.name for change in run.changes}
            allowed = config.run.allow_data_change
            task.data.check_resume(checkpoint.record["data"], allow_data_change=allowed, changed=changed)
        model = task.model
        _check_task(task, config, world)
        if checkpoint is not None:  # whose files other machines may not have yet
            world.run_on_main(lambda: check_shapes(checkpoint, model))
        settle_micro_batch(task, config, checkpoint=checkpoint, world=world)
        look_ahead(task, config, run=path, step=0 if checkpoint is None else checkpoint.step, world=world)
    except InputError:
        abandon_run(run, world=world)
        raise
    plan = task.data.plan
    begin_run(run, config, world=world, chosen={MICRO_BATCH: plan.micro_batch_size, TOTAL_STEPS: plan.total_steps})
    return run


def _check_task(task: Task, config: TrainingConfig, world: World) -> None:
    """Refuse settings that this training could not have on this machine."""
    check_engine(task, config)
    stage = zero_stage(config)
    require(
        stage == 0 or not isinstance(task, OverwritesWeights | EndsSteps),
        f"deepspeed.zero_stage ({stage}) must be 0 here: this training overwrites weights itself, which partitions "
        "held elsewhere would not notice",
    )
    check_speed(config.speed, device=world.device, zero_stage=stage)
    window, total_steps = config.profile.window, task.data.plan.total_steps
    require(
        not window or window[0] < total_steps,
        f"profile.steps ({config.profile.steps}) begin after the run's {total_steps} steps; name earlier ones",
    )
