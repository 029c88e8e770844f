"""The page as a whole: it needs nothing but itself, reads on a phone and by keyboard, and has what there is to show."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from beit.common.overview.report.page import report_page
from beit.common.overview.report.run_files import read_run_files
from beit.common.overview.report.section import Section, text
from beit.common.storage.locks import sole_use
from beit.tests.page_parts import PageParts
from beit.tests.report_runs import ALL, fine_tuned, pretraining, start, steps, tokenizer, write_json, write_run


@pytest.mark.parametrize("kind", ALL)
def test_a_page_of_each_kind_is_whole_and_refers_to_nothing(kind: str, tmp_path: Path) -> None:
    html = report_page(read_run_files([ALL[kind](tmp_path / "run")]))
    page = PageParts(html)
    page.check(hidden=str(tmp_path))
    assert "<script" not in html and not re.search(r"(?:src|href)=\"(?!#|data:)", html) and "url(" not in html
    anchors = {values["id"] for values in page.of("h2")}
    assert {str(values["href"])[1:] for values in page.of("a")} == anchors
    assert "Report on run" in page.text and "Results" in page.text


def test_runs_of_all_kinds_stand_on_one_page_each_in_its_colour(tmp_path: Path) -> None:
    runs = read_run_files([make(tmp_path / kind) for kind, make in ALL.items()])
    html = report_page(runs)
    page = PageParts(html)
    page.check(hidden=str(tmp_path))
    assert "Report on 5 runs" in page.text and "How they learned" in page.text
    for place, kind in enumerate(ALL):
        assert f'style="--line: var(--line{place})">{kind}</span>' in html
    for title in ("Pre-training on visual tokens", "Classification", "Segmentation", "Distilling a tokenizer"):
        assert title in page.text


def test_the_page_says_whether_a_run_is_at_work_or_stopped_and_at_which_step(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        settings='[mask]\nmode = "blockwise"\n[train]\nsteps = 500\n',
        starts=[start("pretrain", "store", "run")],
        records=steps(4),
    )
    with sole_use(run):
        assert "Pre-training, at work at step 40 of 500" in report_page(read_run_files([run]))
        # A run that writes its own page at its end has its folder still to itself.
        assert "Pre-training, stopped at step 40 of 500" in report_page(read_run_files([run], has_ended=True))
    assert "Pre-training, stopped at step 40 of 500" in report_page(read_run_files([run]))


def test_where_no_loss_was_finite_the_page_does_not_speak_of_one(tmp_path: Path) -> None:
    lost = [{"step": 5, "epoch": 0.1, "loss": float("nan"), "lr": 1.0, "images_per_second": 59.321}]
    settings = '[mask]\nmode = "blockwise"\n[train]\nsteps = 60\n'
    run = write_run(tmp_path / "run", settings=settings, starts=[start("pretrain", "store", "run")], records=lost)
    page = PageParts(report_page(read_run_files([run]))).text
    assert "No evaluation yet, and no loss of a training batch was finite." in page and "all there is" not in page
    assert "59.3" in page and "59.32" not in page


def test_columns_of_starts_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    once = PageParts(report_page(read_run_files([pretraining(tmp_path / "once")]))).text
    assert "last sign of life" not in once and "changed" not in once.partition("Starts and stops")[2]
    again = [start("pretrain", "s", "r"), start("pretrain", "s", "r", resumed_from="r/checkpoints/step_20")]
    run = write_run(tmp_path / "again", settings="[train]\nsteps = 40\n", starts=again, records=steps(4))
    shown = PageParts(report_page(read_run_files([run]))).text
    assert " lost " in shown and "step 20" in shown


def test_a_run_is_not_named_beside_its_own_name(tmp_path: Path) -> None:
    html = report_page(read_run_files([pretraining(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]))
    assert "<b>a</b></p>" in html and '<b>a</b> <span class="of">' not in html


def test_blocks_that_hardly_differ_look_alike_in_the_chart(tmp_path: Path) -> None:
    blocks = [{"block": 0, "miou": 0.1398}, {"block": 1, "miou": 0.1405}]
    probe = {"task": "linear-probe", "miou": 0.1405, "best_block": 1, "blocks": blocks, "num_images": 101}
    run = write_run(tmp_path / "run", settings='encoder = "e"\n', starts=[start("finetune", "linear-probe")])
    write_json(run / "segmentation-probe.json", probe)
    html = report_page(read_run_files([run]))
    assert "14\u00a0%</text>" in html and not re.search(r"\d\.\d\d\d?\u00a0%</text>", html), "ticks of whole points"


def evaluated_twice(run: Path) -> Path:
    """Let a run have had one more evaluation, with the same outcome."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    earlier = json.dumps(json.loads(lines[-1]) | {"step": 10})
    (run / "metrics.jsonl").write_text("\n".join([lines[0], earlier, *lines[1:]]) + "\n")
    return run


def test_zero_lines_are_in_the_charts(tmp_path: Path) -> None:
    paths = [evaluated_twice(pretraining(tmp_path / "a")), evaluated_twice(fine_tuned(tmp_path / "b"))]
    html = report_page(read_run_files(paths))
    for line in ("unigram 8.00 bits", "neighbour 7.00 bits", "commonest word 5.0\u00a0%", "guessing 25.0\u00a0%"):
        assert f"{line}</text>" in html


def test_what_was_measured_once_is_a_table_and_no_chart_of_a_dot(tmp_path: Path) -> None:
    html = report_page(read_run_files([fine_tuned(tmp_path / "a"), fine_tuned(tmp_path / "b", top1=0.7)]))
    learned = html[html.index('<h2 id="learning"') :].split("</section>")[0]
    assert '<h3 class="of">top-1' not in learned and "Ringed" not in learned
    text = re.sub("<[^>]*>", "|", learned).replace("\xa0", " ")
    assert re.search(r"top-1 on validation images\|+80.0 %\|+70.0 %\|+guessing 25.0 %", text)
    alone = report_page(read_run_files([pretraining(tmp_path / "c")]))
    assert "unigram 8.00 bits; neighbour 7.00 bits" in alone and "unigram 8.00 bits</text>" not in alone


def skip_steps(run: Path, steps: Sequence[int], *, at: float = 4e9) -> Path:
    """Note steps that were not finite, by default after every start."""
    file = run / "nonfinite.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    os.utime(file, (at, at))
    return run


def test_a_run_that_diverged_says_so_with_the_way_out(tmp_path: Path) -> None:
    run = skip_steps(pretraining(tmp_path / "run"), (3, 27, 28, 29, 30))
    page = " ".join(PageParts(report_page(read_run_files([run]))).text.split())
    assert "Pre-training, diverged at step 30 of 30" in page
    assert "More than 3 steps in a row had a loss" in page
    assert "nonfinite.jsonl" in page and "Lower optimizer.lr" in page


def test_what_was_not_finite_is_no_number(tmp_path: Path) -> None:
    run = pretraining(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    evaluation = json.dumps(json.loads(lines[-1]) | {"held_out_bits": None, "evaluation_seconds": 1.0})
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], evaluation]) + "\n")
    description = json.loads((run / "encoder/config.json").read_text())
    description["provenance"]["metrics"] |= {"held_out_bits": float("nan")}
    write_json(run / "encoder/config.json", description)
    page = PageParts(report_page(read_run_files([run]))).text
    assert "not finite" in page and not re.search(r"\bnan\b", page)
    assert "No evaluation came to a finite value" in page


@pytest.mark.parametrize("steps", [(3, 27, 29, 30), (1, 2, 3, 4), (27, 28, 29, 27, 29)])
def test_a_run_that_skipped_steps_and_went_on_has_not_diverged(steps: tuple[int, ...], tmp_path: Path) -> None:
    run = skip_steps(pretraining(tmp_path / "run"), steps)
    assert read_run_files([run])[0].divergence is None


def test_a_run_started_again_after_it_diverged_is_at_work(tmp_path: Path) -> None:
    run = skip_steps(pretraining(tmp_path / "run"), (28, 29, 30, 31))
    assert read_run_files([run])[0].divergence is not None
    skip_steps(run, (28, 29, 30, 31), at=0)  # long before the start that is recorded
    assert read_run_files([run])[0].divergence is None


def test_rate_waiting_and_memory_begin_at_zero(tmp_path: Path) -> None:
    html = report_page(read_run_files([fine_tuned(tmp_path / "run")]))
    speed = html[html.index('<h2 id="speed"') :]
    speed = speed[: speed.index("</section>")]
    assert speed.count("<svg") == 3 and len(re.findall(r">0(?:\.0+)?(?:\u00a0%)?</text>", speed)) >= 3


def test_a_run_of_many_records_has_a_page_of_bounded_size(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1.0 / step, "images_per_second": 9.0, "lr": 0.1} for step in range(1, 20_001)]
    run = write_run(tmp_path / "run", settings="[classifier]\n", starts=[], records=records)
    (run / "config.toml").write_text('encoder = "random"\n[classifier]\npooling = "cls"\n')
    html = report_page(read_run_files([run]))
    assert len(html) < 200_000 and "No evaluation yet" in html


def test_pictures_stand_behind_the_curves(tmp_path: Path) -> None:
    pictures = [Section(title="Masks", anchor="masks", parts=(text("what was hidden"),))]
    page = PageParts(report_page(read_run_files([pretraining(tmp_path / "run")]), pictures=pictures))
    order = [values["id"] for values in page.of("h2")]
    assert order.index("learning") + 1 == order.index("masks") < order.index("provenance")


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    html = report_page(read_run_files([tokenizer(tmp_path / "<script>&amp;`x`", "kmeans")]))
    assert "<script>" not in html and "&lt;script&gt;&amp;amp;" in html
    PageParts(html).check()
