"""When a run was started, how far each start got, and what of it was lost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from beit.common.overview.report.history import history
from beit.common.overview.report.run_files import RunFiles, read_run_files
from beit.common.overview.report.timeline import duration, seconds_of, timeline_section
from beit.tests.report_runs import start, write_run

TEN, ELEVEN = "2026-05-04T10:00:00+0000", "2026-05-04T12:30:00+0130"
BEGAN = datetime(2026, 5, 4, 10, tzinfo=UTC)


def started(folder: Path, *starts: dict) -> RunFiles:
    write_run(folder, settings='[mask]\nmode = "random"\n[train]\nsteps = 200\n', starts=starts)
    return read_run_files([folder])[0]


def record(folder: Path, minutes: float, *steps: int) -> None:
    """Write an event file as a start of `minutes` after ten would, a step per second."""
    at = BEGAN.timestamp() + 60 * minutes
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps[0])
    for number, step in enumerate(steps):
        writer.add_scalar("loss", 1.0, step, walltime=at + number)
    writer.close()


def test_each_start_has_its_last_sign_of_life_and_what_the_next_did_not_go_on_from(
    tmp_path: Path,
) -> None:
    resumed = start("pretrain", time=ELEVEN, resumed_from="runs/one/checkpoints/step_100")
    run = started(tmp_path / "run", start("pretrain", time=TEN), resumed)
    files = {"a": (1, 10, 120), "b": (62, 110, 200)}
    for name, (minutes, *steps) in files.items():
        writer_folder = tmp_path / name
        record(writer_folder, minutes, *steps)
        written = next((writer_folder / "tensorboard").iterdir())
        (run.path / "tensorboard").mkdir(exist_ok=True)
        (run.path / f"tensorboard/events.out.{name}").write_bytes(without_the_writers_own_clock(written))
    first, second = history(run)
    assert (first.last_step, first.lost_steps, first.is_resumed, first.from_step) == (120, 20, False, 0)
    assert (second.last_step, second.lost_steps, second.is_resumed, second.from_step) == (200, 0, True, 100)
    assert first.seconds == 61.0 and second.seconds == 121.0 and seconds_of([first, second]) == 182.0
    shown = str(timeline_section([run]).parts[0])
    assert "20 steps" in shown and "step 100" in shown and "2026-05-04 11:00" in shown


def without_the_writers_own_clock(file: Path) -> bytes:
    """Leave out the three events by which a writer begins, whose time is now."""
    data, kept, place = file.read_bytes(), b"", 0
    for number in range(10_000):
        if place >= len(data):
            break
        size = int.from_bytes(data[place : place + 8], "little") + 16
        kept += data[place : place + size] if number > 2 else b""
        place += size
    return kept


def test_without_event_files_or_with_damaged_ones_starts_are_told_all_the_same(tmp_path: Path) -> None:
    run = started(tmp_path / "run", start("pretrain", time=TEN), start("pretrain", time="yesterday"))
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard/events.out.1").write_bytes(b"\x00garbage" * 9)
    first, second = history(run)
    assert first.began == BEGAN and first.last_seen is None and first.seconds is None
    assert second.began is None and seconds_of([first, second]) is None
    assert "yesterday" not in str(timeline_section([run]).parts[0])


def test_a_run_without_a_record_of_starts_has_no_such_section(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    assert history(run) == [] and timeline_section([run]).parts == ()


def test_durations_are_written_as_people_say_them() -> None:
    known = {0: "0 s", 59: "59 s", 60: "1 min", 3600: "1 h 0 min", 5400: "1 h 30 min", 90 * 3600: "3 d 18 h"}
    assert {seconds: duration(seconds) for seconds in known} == known


def test_a_start_that_was_stopped_between_two_records_came_as_far_as_the_next_went_on_from(tmp_path: Path) -> None:
    resumed = start("pretrain", time=ELEVEN, resumed_from="runs/one/checkpoints/step_127")
    run = started(tmp_path / "run", start("pretrain", time=TEN), resumed)
    record(tmp_path / "a", 1, 10, 125)
    (run.path / "tensorboard").mkdir()
    written = next((tmp_path / "a/tensorboard").iterdir())
    (run.path / "tensorboard/events.out.a").write_bytes(without_the_writers_own_clock(written))
    first, _ = history(run)
    assert (first.last_step, first.lost_steps) == (127, 0)
    assert "step 127 (1\u00a0min)" in str(timeline_section([run]).parts[0])
