"""What every training shares: its loop of steps, evaluations, checkpoints and orderly stops.

How it begins is `start.py`; what differs between trainings is a `Task` (`task.py`). DeepSpeed is behind `engine.py`,
saving and restoring is `saver.py`, records are `common/runs/metrics.py`, and what a non-finite step means is
`judge.py`.

`step` counts attempted optimizer steps and is the position in the data; a step skipped because it was not finite moves
the data on but not the schedule of learning rate and weight decay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from torch import nn

from beit.common.errors import ResumableStop, RunFailed
from beit.common.forecast.evaluations import evaluation_cost
from beit.common.forecast.words import in_words
from beit.common.processes.cores import return_freed_memory
from beit.common.processes.distributed import World, init_distributed
from beit.common.processes.signals import StopFlag, resumable_without_others, stop_on_signals, under_way
from beit.common.progress import Progress
from beit.common.reading.fetcher import StoppedWaiting
from beit.common.runs.layout import NONFINITE, PROFILE, REPORT
from beit.common.runs.metrics import Metrics, open_metrics
from beit.common.runs.run_dir import RunDirectory
from beit.common.runs.wandb_log import require_wandb
from beit.common.storage.locks import sole_use
from beit.common.training.config import TrainingConfig, cosine_schedule, learning_rate
from beit.common.training.data import BatchStream, HostFlag
from beit.common.training.ema import WeightAverage
from beit.common.training.engine import Engine
from beit.common.training.judge import BestSoFar, Diverged, NonFiniteGuard
from beit.common.training.measure import ProfileWindow, peak_flops, peak_memory_bytes
from beit.common.training.micro_batches import shortage_in_words
from beit.common.training.outlook.expectation import LONG_REST_SECONDS, Expectation, finished_line
from beit.common.training.portable_state import gather_state
from beit.common.training.rhythm import Rhythm
from beit.common.training.saver import Saver
from beit.common.training.speed import apply_speed
from beit.common.training.start import start_run
from beit.common.training.task import (
    CountsEvaluation,
    CountsFlops,
    DrawsPictures,
    EndsSteps,
    FitResult,
    OverwritesWeights,
    Remembers,
    Reports,
    Task,
)

logger = logging.getLogger(__name__)
SomeTask = TypeVar("SomeTask", bound=Task)


def train(
    config: TrainingConfig,
    build_task: Callable[[World], SomeTask],
    *,
    run_dir: Path,
    resume: str,
    free_keys: Sequence[str] = (),
) -> tuple[SomeTask, FitResult]:
    """Do a training, from joining the ranks to its end; every stage's trainings begin here.

    `build_task` opens the data, after the ranks have joined and the seed is set. For the others see `open_run`.

    Raises:
        InputError: bad input, and what `start_run` and `fit` refuse.
        ResumableStop: asked to stop; everything is saved.
        Diverged: too many steps were not finite.
    """
    with stop_on_signals() as stop, resumable_without_others(stop):
        require_wandb(config.run.wandb)
        world = init_distributed(
            timeout_seconds=config.train.collective_timeout_seconds,
            meeting_timeout_seconds=config.train.meeting_timeout_seconds,
        )
        world.announce()
        torch.manual_seed(config.train.seed)
        task = build_task(world)
        run = start_run(task, config, path=run_dir, resume=resume, world=world, free_keys=free_keys)
        task.begin(run_dir)
        return task, fit(task, config, run=run, world=world)


def fit(task: Task, config: TrainingConfig, *, run: RunDirectory, world: World) -> FitResult:
    """Train to the end of the plan, from the run's checkpoint if it has one; all ranks call this.

    Raises:
        InputError: the settings ask for what this task cannot do, another process trains in the run's directory, or bad
            input met on the way.
        ResumableStop: asked to stop; everything is saved.
        Diverged: too many steps were not finite.
    """
    with ExitStack() as locks, stop_on_signals() as stop, shortage_in_words(lambda: task.data.plan):
        world.run_on_main(lambda: locks.enter_context(sole_use(run.path)))
        trainer = Trainer(task, config, run=run, world=world)
        try:
            return trainer.run(stop)
        finally:
            trainer.close()


class Trainer:
    """The state of one training: counters, engine, data stream and the files it writes. Use `fit`."""

    def __init__(self, task: Task, config: TrainingConfig, *, run: RunDirectory, world: World) -> None:
        self._task, self._config, self._run, self._world = task, config, run, world
        self._plan = task.data.plan
        self._best = BestSoFar(goal=task.goal, patience=config.train.early_stop_evals)
        self._best_weights: dict[str, torch.Tensor] | None = None
        self._expectation = Expectation(task, config, run=run.path, world=world)
        self._rhythm = Rhythm(config.train, self._plan, cost=_evaluation_cost(task, world), world=world)
        before = run.checkpoint.record.get("precision") if run.checkpoint else None
        self._engine = Engine(task, config, world=world, before=before)
        apply_speed(task.model, config.speed, device=world.device, zero_stage=self._engine.zero_stage)
        self._peak_flops = peak_flops(world.device, self._engine.precision, config.speed.peak_tflops)
        window = config.profile.window
        self._profile = ProfileWindow(window, run.path / PROFILE, world) if window else None
        self._average = WeightAverage(self._engine, config.train.ema_decay)
        self._saver = Saver(task, engine=self._engine, run=run, world=world, config=config.checkpoint)
        self._guard = NonFiniteGuard(run.path / NONFINITE if world.is_main else None)
        self._step, self._end, self._lr = 0, self._plan.total_steps, 0.0
        self._evaluation: dict[str, float] = {}
        self._unread: list[tuple[int, HostFlag, list[str]]] = []
        self._losses: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
        self._random_before: dict[str, torch.Tensor] = {}
        """Of this rank, where the step under way began."""
        self._logged_at, self._logged_step = time.monotonic(), 0
        self._saved_at = time.monotonic()
        """When a save was last tried; at first, when the training began."""
        self._metrics = Metrics()
        self._show_part: Callable[[float], None] = lambda part: None
        self._stream = BatchStream(iter(()), world.device)

    def run(self, stop: StopFlag) -> FitResult:
        """Restore, then step to the end."""
        total = self._plan.total_steps
        self._restore()
        self._world.run_on_main(self._open_metrics)
        start, is_main, is_finished = self._step, self._world.is_main, self._step >= self._end
        if is_finished and is_main:
            logger.info("%s", finished_line(self._run.path, self._config.train, self._plan, step=start))
        speaks = is_main and not is_finished
        progress = Progress(total, unit="steps", description="training", initial=start, enabled=speaks, foretells=False)
        self._show_part = progress.within
        if not is_finished:
            self._rhythm.start()
            self._start_data()
        self._world.shorten_timeouts()
        try:
            self._step_on(stop, progress)
        except Diverged:  # on every rank at the same step
            self._report(is_over=False)  # the page on which one looks for the reason
            raise
        if self._step > start or not (self._run.path / REPORT).exists():
            self._report(is_over=True)
        failure = self._saver.finish()
        if failure is not None:
            raise RunFailed(
                f"the run is complete in {self._run.path}, but not copied to {self._run.sync_to} ({failure}); run the "
                "same command to copy it"
            )
        done = {"start_step": start, "step": self._step, "nonfinite_steps": self._guard.total}
        return FitResult(**done, metrics=self._evaluation, best=self._best)

    def _step_on(self, stop: StopFlag, progress: Progress) -> None:
        """Step to the end of the plan, or to where it is ended early."""
        with ExitStack() as at_the_end:
            at_the_end.push(progress)  # only now: data that cannot be opened are an error without a line of progress
            while self._step < self._end:
                self._heed(stop)
                if self._profile is not None:
                    self._profile.before(self._step)
                try:
                    with stop.during("this step"):
                        self._train_step(stop)
                except StoppedWaiting as stopped:
                    self._leave_half_way(stopped)
                self._step += 1
                progress.update(1, **self._between_steps())

    def _open_metrics(self) -> None:
        total, project = self._plan.total_steps, self._config.run.wandb
        self._metrics = open_metrics(self._run.path, self._step, total_steps=total, wandb_project=project)

    def close(self) -> None:
        """Close files, end the data workers and release the engine."""
        if self._profile is not None:
            self._profile.close()
        self._stream.close()
        self._metrics.close()
        self._saver.close()
        self._engine.close()

    def _restore(self) -> None:
        """Continue from the run's checkpoint, if it has one."""
        checkpoint = self._saver.restore()
        self._saver.copy_what_is_missing()
        if checkpoint is not None:
            self._step = checkpoint.step
            self._guard.restore(checkpoint.record["nonfinite"])
            self._evaluation = dict(checkpoint.record["evaluation"])
            self._rhythm.restore(checkpoint.record.get("rhythm", {}))
            if isinstance(self._task, Remembers) and "memory" in checkpoint.record:
                self._task.recall(checkpoint.record["memory"])
            if "best" in checkpoint.record:
                self._best.restore(checkpoint.record["best"])
                if self._best.is_exhausted:
                    self._end = self._step
            goal = self._task.goal
            if self._world.is_main and goal is not None and goal.keep_best:
                self._best_weights = checkpoint.best_weights()

    def _start_data(self) -> None:
        """Put the random generators where this step needs them, and open the data stream, which draws nothing."""
        self._saver.restore_random_state(seed=self._config.train.seed, step=self._step)
        self._stream = BatchStream(iter(self._task.data.micro_batches(self._step)), self._world.device)
        self._stream.start()
        self._engine.model.train()
        self._reset_clock()

    def _train_step(self, stop: StopFlag) -> None:
        """Forward and backward over the step's micro-batches, then one update."""
        self._random_before = self._saver.random_state()
        position = self._step - self._guard.total
        self._lr = learning_rate(position, self._config.optimizer, self._plan)
        self._engine.set_schedule(lr=self._lr, weight_decay_factor=self._weight_decay_factor(position))
        self._losses.clear()
        sample_ids: list[str] = []
        self._expectation.begin_step()
        for number in range(self._plan.grad_accum_steps):
            self._show_part(number / self._plan.grad_accum_steps)
            with self._part_of_step(stop, number):
                batch = self._stream.next()
                sample_ids += batch.get("sample_ids", [])
                self._losses.append(self._engine.forward_backward(batch, self._step))
            if self._step + 1 < self._plan.total_steps:
                self._stream.preload()
            self._expectation.end_micro_batch(self._step)
        self._engine.step()
        if isinstance(self._task, EndsSteps):
            self._task.end_step(self._engine.skipped)
        self._expectation.end_step()
        self._average.update()
        if isinstance(self._task, OverwritesWeights):
            for parameter, rows in self._task.overwritten_rows():
                self._average.restart_rows(parameter, rows)
        self._unread.append((self._step, HostFlag(self._engine.verdict()), sample_ids))
        # On a GPU the newest flag is left for the next step, so that the host never waits for the device.
        self._read_flags(leave=1 if self._world.device.type == "cuda" else 0)

    def _part_of_step(self, stop: StopFlag, done: int) -> AbstractContextManager[None]:
        """Leave a step whose rest takes long where a stop was asked for, else have it wait for one micro-batch only."""
        rest = self._expectation.rest_of_step(done)
        if rest < LONG_REST_SECONDS or not self._can_leave_half_way():
            return nullcontext()
        if stop.is_set():
            raise StoppedWaiting(f"stopped ({stop.reason}) within a step, the rest of which takes {in_words(rest)}")
        return stop.during("this micro-batch")

    def _weight_decay_factor(self, position: int) -> float:
        """Return the scheduled weight decay relative to the configured one."""
        base, final = self._config.optimizer.weight_decay, self._config.optimizer.final_weight_decay
        if final is None or base == 0:
            return 1.0
        total = self._plan.total_steps
        return cosine_schedule(position, total_steps=total, warmup_steps=0, peak=base, final=final) / base

    def _read_flags(self, *, leave: int) -> None:
        """Count the skipped among all but the newest `leave` steps."""
        while len(self._unread) > leave:
            step, flag, sample_ids = self._unread.pop(0)
            verdict = flag.value()
            if verdict:
                self._guard.note(step, self._world.gather(sample_ids), is_overflow=verdict == 2)

    def _heed(self, stop: StopFlag) -> None:
        """Save when it is time to, and leave when any rank was asked to stop."""
        minutes = self._config.checkpoint.every_minutes
        is_late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        # Of the clocks that of rank 0 decides.
        is_stop, is_due = self._world.max_of([float(stop.is_set()), float(is_late and self._world.is_main)])
        if not (is_stop or is_due):
            return
        self._read_flags(leave=0)
        if self._saver.saved_step != self._step:
            self._save(required=bool(is_stop))
        if is_stop:
            self._leave(stop)

    def _leave(self, stop: StopFlag) -> None:
        """End the run; everything is saved."""
        reason = next(reason for reason in self._world.gather(stop.reason) if reason)
        self._report(is_over=False)
        failure = self._saver.finish()
        saved = "saved" if failure is None else f"saved, but not copied to {self._run.sync_to} ({failure})"
        where = f"step {self._step} of {self._plan.total_steps}"
        raise ResumableStop(f"stopped at {where} ({reason}), {saved}; run the same command to go on")

    def _report(self, *, is_over: bool) -> None:
        """Let the task write a page about the run, if it can and is to; nothing is read any more."""
        self._stream.close()
        return_freed_memory()
        task = self._task
        if self._config.run.report and isinstance(task, Reports):
            self._world.run_on_main(lambda: task.report(self._run.path, is_over=is_over))
            self._saver.copy_again()

    def _leave_half_way(self, stopped: StoppedWaiting) -> NoReturn:
        """End the run in the middle of a step, saved as it stood before, if it can."""
        where = f"step {self._step} of {self._plan.total_steps}"
        if self._can_leave_half_way():
            self._read_flags(leave=0)
            self._saver.set_random_state(self._random_before)
            if self._saver.saved_step != self._step:
                self._save(required=True)
            self._report(is_over=False)  # where ranks wait for each other it would wait, too
        saved = self._saver.saved_step
        kept = "nothing is saved yet" if saved < 0 else f"step {saved} is saved"
        raise ResumableStop(f"{stopped.what}; {where}, {kept}; run the same command to go on") from None

    def _can_leave_half_way(self) -> bool:
        """Whether a step under way can be saved as it began.

        Several ranks save together or not at all, and the others may have all their data. A task that overwrites
        weights may have done so for a part of the step.
        """
        return self._world.world_size == 1 and not (self._losses and isinstance(self._task, OverwritesWeights))

    def _between_steps(self) -> dict[str, float]:
        """Log, evaluate and save where the step number says so; returns the fields to show."""
        is_last = self._step == self._end
        is_eval = is_last or self._rhythm.is_due(self._step)
        is_save = is_last or self._is_save_due(is_eval)
        is_log = is_last or self._step % self._config.train.log_interval_steps == 0
        shown: dict[str, float] = {}
        if is_log or is_eval or is_save:
            self._read_flags(leave=0)
        if is_log:
            shown = self._log()
        if is_eval:
            with under_way("this evaluation"):
                self._evaluate()
        is_last = self._step == self._end
        if is_save or is_last:
            self._save(required=is_last)
        return shown

    def _is_save_due(self, is_eval: bool) -> bool:
        """Whether it is time for a checkpoint: where the settings leave it open, only if it costs little."""
        is_due, goal = self._step % self._plan.save_interval_steps == 0, self._task.goal
        if self._config.checkpoint.interval_steps is not None:
            return is_due
        if is_eval and goal is not None and goal.is_chosen_by_saves:
            return True
        return is_due and self._rhythm.has_rested(self._saved_at)

    def _log(self) -> dict[str, float]:
        """Write one record of the step just done: mean over micro-batches and ranks."""
        names = sorted(self._losses[0][1])
        columns = [torch.stack([loss.float() for loss, _ in self._losses])]
        columns += [torch.stack([metrics[name].float() for _, metrics in self._losses]) for name in names]
        values = torch.stack(columns).mean(dim=1).tolist()  # waits for the device
        now, waited = time.monotonic(), self._stream.wait_seconds
        seconds, steps = max(now - self._logged_at, 1e-9), self._step - self._logged_step
        *means, wait_share = self._world.mean_of([*values, waited / seconds])
        record: dict[str, float] = {
            "step": self._step,
            "epoch": round(self._step / self._plan.steps_per_epoch, 4),
            **dict(zip(["loss", *names], means, strict=True)),
            "lr": self._lr,
            "grad_norm": self._engine.grad_norm(),
            **self._use_of_device(steps * self._plan.global_batch_size / seconds),
            "data_wait": round(wait_share, 4),
            "nonfinite_steps": self._guard.total,
        }
        self._metrics.write(record)
        self._reset_clock()
        shown = [name for name in ("loss", *names) if not (name == "loss" and "bits" in names)]  # one unit for people
        return {name: record[name] for name in (*shown, "lr", "images_per_second", "data_wait")}

    def _use_of_device(self, images_per_second: float) -> dict[str, float]:
        """Return throughput, the share of the devices' arithmetic that it is, and the memory it takes on any rank."""
        use = {"images_per_second": round(images_per_second, 2)}
        if self._peak_flops is not None and isinstance(self._task, CountsFlops):
            flops_per_rank = images_per_second * self._task.flops_per_sample() / self._world.world_size
            use["mfu"] = round(flops_per_rank / self._peak_flops, 4)
        (peak_bytes,) = self._world.max_of([float(peak_memory_bytes(self._world.device))])
        return {**use, "peak_memory_bytes": int(peak_bytes)}

    def _evaluate(self) -> None:
        """Run the task's evaluation without touching the training's random numbers."""
        started, model = time.monotonic(), self._engine.model
        return_freed_memory()
        model.eval()
        device = self._world.device
        generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with self._average.averaged_weights(), generators, torch.no_grad(), self._engine.autocast():
            self._evaluation = self._task.evaluate(model, self._step)
            self._draw(model)
        model.train()
        return_freed_memory()
        self._judge()
        if self._evaluation:
            spent = self._rhythm.note_evaluation(self._step, time.monotonic() - started)
            self._metrics.write({"step": self._step, **self._evaluation, **spent})
        self._reset_clock()

    def _draw(self, model: nn.Module) -> None:
        """Let the task draw, if it can."""
        if not isinstance(self._task, DrawsPictures):
            return
        for name, image in self._task.pictures(model, self._step).items():
            try:
                self._metrics.picture(name, image, self._step)
            except OSError as error:  # not worth a training: what must not be lost is in the checkpoints
                logger.warning("picture %s at step %d was not written (%s)", name, self._step, error)

    def _judge(self) -> None:
        """Compare the evaluation with the best one, and keep the weights if they are to be kept."""
        goal = self._task.goal
        is_best = self._best.note(self._step, self._evaluation)
        if is_best and goal is not None and goal.keep_best:
            state = gather_state(self._engine, with_moments=False)
            self._best_weights = None if state is None else state.weights_in_use()
        if goal is None or not self._best.is_exhausted:
            return
        self._end = self._step
        if self._world.is_main:
            logger.info(
                "stopped early at step %d: %s has not improved in %d evaluations; the best is %.4f of step %d",
                self._step,
                goal.metric,
                self._best.evals_since,
                self._best.value,
                self._best.step,
            )

    def _save(self, *, required: bool) -> None:
        """Commit a checkpoint and the task's artifacts; a full disk is survived once, unless `required`."""
        started = time.monotonic()
        counters = {"nonfinite": self._guard.state(), "evaluation": self._evaluation, "best": self._best.state()}
        counters["rhythm"] = self._rhythm.state()
        if isinstance(self._task, Remembers):
            counters["memory"] = self._task.memory()
        with under_way("this save"):
            self._saver.save(self._step, counters=counters, required=required, best=self._best_weights)
        self._saved_at = time.monotonic()
        self._rhythm.note_save(self._saved_at - started)
        self._reset_clock()

    def _reset_clock(self) -> None:
        """Start a new interval, so that the rate leaves out evaluation and saving."""
        self._logged_at, self._logged_step = time.monotonic(), self._step
        self._stream.wait_seconds = 0.0


def _evaluation_cost(task: Task, world: World) -> float:
    """Return what an evaluation of the task costs, in images trained on; 0 where it does not say."""
    images = task.evaluation_images() if isinstance(task, CountsEvaluation) else 0.0
    flops = task.flops_per_sample() if isinstance(task, CountsFlops) else None
    return evaluation_cost(images, flops=flops, device=world.device.type, world_size=world.world_size)
