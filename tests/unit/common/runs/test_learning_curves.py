"""Runs drawn from their metrics: which charts, on which scale, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.pictures import HIGHLIGHT, PALETTE
from beit.common.runs.learning_curves import learning_sheet

TOKENS = {"unigram_bits": 9.0, "neighbour_bits": 8.5, "unigram_acc": 0.01}
SIZE_PX = (560, 360)


def write_run(folder: Path, records: Sequence[Mapping[str, float]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def pretraining(folder: Path, *, bits: Sequence[float], lines: Mapping[str, float] = TOKENS) -> Path:
    """A run that evaluates every 10 steps, half an epoch."""
    records: list[dict[str, float]] = []
    for number, value in enumerate(bits, 1):
        records.append({"step": 10 * number, "epoch": number / 2, "loss": value})
        measured = {"held_out_bits": value, "train_bits": value - 0.1, "held_out_acc": 0.1, "train_acc": 0.11}
        records.append({"step": 10 * number, **measured, **lines})
    return write_run(folder, records)


def places_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(n, 2) rows and columns of the pixels of one colour, edges that were smoothed aside."""
    return np.argwhere(np.abs(pixels.astype(int) - colour).sum(axis=-1) < 40)


def test_two_runs_are_drawn_in_two_colours(tmp_path: Path) -> None:
    runs = [pretraining(tmp_path / name, bits=bits) for name, bits in (("one", [9.0, 8.2]), ("two", [8.8, 7.9]))]
    pixels = np.asarray(learning_sheet(runs))
    assert all(len(places_of(pixels, colour)) > 50 for colour in PALETTE[:2])
    assert not len(places_of(pixels, PALETTE[2]))


def test_other_words_change_the_scale_and_the_same_words_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    references: list[Sequence[tuple[float, str]]] = []

    def record(charts: Sequence[LineChart], **named: object) -> object:
        titles.extend(chart.title for chart in charts)
        references.extend(chart.references for chart in charts)
        return line_charts(charts, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("beit.common.runs.learning_curves.line_charts", record)
    one, two = (pretraining(tmp_path / name, bits=[8.0, 7.5]) for name in ("one", "two"))
    other = pretraining(tmp_path / "other", bits=[5.0, 4.5], lines=TOKENS | {"unigram_bits": 6.0})
    learning_sheet([one, two])
    assert titles == ["bits per masked token", "masked tokens right"]
    assert references[0] == [(9.0, "unigram 9.00 bits"), (8.5, "neighbour 8.50 bits")]
    titles.clear()
    learning_sheet([one, other])
    assert titles[0] == "bits per masked token, as a share of unigram"


def test_a_run_with_a_probe_gets_a_chart_more(tmp_path: Path) -> None:
    plain = learning_sheet([pretraining(tmp_path / "plain", bits=[8.0])])
    probe = {"probe_linear_acc": 0.4, "probe_knn_acc": 0.3, "probe_chance": 0.1}
    probed = learning_sheet([pretraining(tmp_path / "probed", bits=[8.0], lines=TOKENS | probe)])
    assert probed.height == plain.height + SIZE_PX[1]


@pytest.mark.parametrize(
    "record",
    [
        {"held_out_mse": 0.4, "train_mse": 0.39, "mean_mse": 1.0},
        {"val_top1": 0.5, "val_loss": 1.4},
        {"val_map": 0.5, "val_loss": 0.4},
        {"eval_psnr": 22.0, "eval_words_used": 60.0, "eval_block_mean_psnr": 20.0},
        {"eval_teacher_cosine": 0.6, "eval_words_used": 60.0, "eval_agreement": 0.3, "eval_agreement_by_chance": 0.02},
    ],
)
def test_every_kind_of_training_is_drawn_before_its_first_log_entry_too(
    tmp_path: Path, record: dict[str, float]
) -> None:
    pixels = np.asarray(learning_sheet([write_run(tmp_path / "run", [{"step": 5, **record}])]))
    assert len(places_of(pixels, HIGHLIGHT)) > 5


def test_what_cannot_be_drawn_is_one_clear_line(tmp_path: Path) -> None:
    run = pretraining(tmp_path / "run", bits=[8.0])
    classifier = write_run(tmp_path / "classifier", [{"step": 5, "val_top1": 0.5, "val_loss": 1.4}])
    young = write_run(tmp_path / "young", [{"step": 5, "epoch": 0.1, "loss": 7.0}])
    with pytest.raises(InputError, match=r"missing is not the directory of a training run"):
        learning_sheet([tmp_path / "missing"])
    with pytest.raises(InputError, match=r"young has no evaluation yet"):
        learning_sheet([young])
    with pytest.raises(InputError, match=r"classifier \(classification\) and .*run \(pre-training on visual tokens\)"):
        learning_sheet([run, classifier])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "metrics.jsonl").write_bytes(b'\x8c\xff\n[1]\n{"held_out_bits": 3.0}\n')
    with pytest.raises(InputError, match=r"damaged has no evaluation yet"):
        learning_sheet([damaged])
    with pytest.raises(InputError, match=r"named twice"):
        learning_sheet([run, run])
    with pytest.raises(InputError, match=r"7 runs are too many"):
        learning_sheet([tmp_path / str(number) for number in range(7)])


def keep(run: Path, step: int, *, folder: str = "model") -> Path:
    """Say of a run which step its model is of."""
    (run / folder).mkdir()
    (run / folder / "config.json").write_text(json.dumps({"provenance": {"step": step}}))
    return run


def facts_and_lines(monkeypatch: pytest.MonkeyPatch, runs: Sequence[Path]) -> tuple[str, Sequence[Line]]:
    """What is written above the charts, and the lines of the first chart."""
    facts: list[str] = []
    lines: list[Sequence[Line]] = []

    def record_sheet(bodies: object, **named: str) -> None:
        facts.append(named["facts"])

    def record_charts(charts: Sequence[LineChart], **named: object) -> None:
        lines.append(charts[0].lines)

    monkeypatch.setattr("beit.common.runs.learning_curves.sheet", record_sheet)
    monkeypatch.setattr("beit.common.runs.learning_curves.line_charts", record_charts)
    learning_sheet(runs)
    return facts[0], lines[0]


def classified(folder: Path) -> Path:
    records = [
        {"step": step, "val_top1": share, "val_loss": 1.0} for step, share in ((300, 0.2), (630, 0.29), (900, 0.23))
    ]
    return write_run(folder, records)


def test_the_kept_model_is_ringed_and_named_before_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, (line,) = facts_and_lines(monkeypatch, [keep(classified(tmp_path / "flowers"), 630)])
    assert facts == "flowers: kept with 29.0 % at step 630; last 23.0 % at step 900"
    assert line.mark == (630, 0.29, "kept: 29.0 %")


def test_of_several_runs_every_kept_model_is_ringed_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [keep(classified(tmp_path / "a"), 900), keep(classified(tmp_path / "b"), 300)]
    facts, lines = facts_and_lines(monkeypatch, runs)
    assert [line.mark for line in lines] == [(900, 0.23, ""), (300, 0.2, "")]
    assert facts.splitlines() == [
        "a: kept with 23.0 % at step 900, the last measured",
        "b: kept with 20.0 % at step 300; last 23.0 % at step 900",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"provenance": {"step": "x"}}', '{"provenance": {"step": 77}}'])
def test_where_nothing_says_what_is_kept_no_point_is_ringed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    run = keep(classified(tmp_path / "a"), 0)
    (run / "model/config.json").write_text(text)
    facts, (line,) = facts_and_lines(monkeypatch, [run])
    assert line.mark is None and facts == "a: 23.0 % at step 900"
