"""A comparison is planned, refused, done run after run by a stand-in, gone on with, and said as far as it is shown."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from beit.common.errors import InputError, ResumableStop
from beit.common.vit.config import ViTConfig
from beit.finetune.worth import run as worth_run
from beit.finetune.worth.commands import worth_command
from beit.finetune.worth.comparison import STARTS, TASKS, Labels, Matrix, differing, parse_labels
from beit.finetune.worth.cost import Job, duration, seconds_left, time_text
from beit.finetune.worth.plan import MADE_FOR, Plan, continue_recipe
from beit.finetune.worth.report import _differences_chart, _means_chart, _range, as_markdown, as_text, picture, sentence
from beit.finetune.worth.results import make_row
from beit.pretrain.model import MaskedImageModel
from beit.tests.encoders import save_encoder
from beit.tests.support import write_images

RECIPES = Path(__file__).resolve().parents[4] / "pretrain/recipes"


def write_encoder(folder, *, width=16, patch_size=4):
    torch.manual_seed(width)
    shape = ViTConfig(img_size=32, patch_size=patch_size, embed_dim=width, depth=1, num_heads=2)
    state = MaskedImageModel(shape, vocab_size=8, num_masked=4).state_dict()
    save_encoder(folder, state, architecture=shape, mean=[0.5] * 3, std=[0.5] * 3, provenance={"total_steps": 7})


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 24), ("val", 8)):
        write_images(tmp_path / name, count, size=32, classes=("a", "b"))
    write_encoder(tmp_path / "weights")
    write_encoder(tmp_path / "continued")
    write_encoder(tmp_path / "wide", width=32)
    return tmp_path


WORDS = ["train", "out", "--val", "val", "--weights", "weights", "--labels", "4,8", "--seeds", "0,1"]


def invoke(*words):
    return CliRunner().invoke(worth_command, [*WORDS, *words], catch_exceptions=False)


def test_a_dry_run_says_cost_and_commands_and_does_nothing(place):
    result = invoke("--continued", "continued", "--dry-run")
    assert "12 fine-tunings, 12 probes; 0 of 24 are done" in result.output
    assert "random, weights, continued; 4, 8 labels; seeds 0, 1; measured on 8 images of 2 classes" in result.output
    assert "disk: about" in result.output and "and so on for seed 1" in result.output
    [random] = [line for line in result.output.splitlines() if "classification" in line and "-4-random-" in line]
    for part in ("--encoder random", "model.embed_dim=16", "image.patch_size=4", "data.num_labels=4", "--recipe small"):
        assert part in random
    assert "--val" not in random  # nothing is chosen on the images that are measured on
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--starts", "random,continued"], "--starts continued needs --store STORE (or --images SOURCE)"),
        (["--starts", "random,public"], "did you mean weights?"),
        (["--starts", "random,scratch"], "needs --store STORE"),
        (["--starts", "weights"], "is one start"),
        (["--labels", "25"], "must be between the 2 classes and the 24 labelled images"),
        (["--labels", "4:0"], "must be a number of labels"),
        (["--labels", "4,4"], "twice"),
        (["--val", "train"], "holds the same images as train"),
        (["--continued", "wide"], "is another network than --weights weights"),
        (["--store", "train"], "is not a token store"),
        (["--store", "s", "--images", "train"], "exclude each other"),
        (["--weights", "nothing"], "nothing"),
        (["--images", "nothing"], "nothing does not exist"),
        (["--images", "nothing", "--starts", "random,scratch", "--dry-run"], "nothing does not exist"),
        (["--images", "train/*.tar"], "*.tar"),
        (["--tasks", "probe"], "did you mean linear-probe?"),
        (["--set", "train.seed=3"], "--seeds says it here"),
        (["--set", "optimizer.lrr=3"], "optimizer.lr"),
        (["--recipe", "small_5"], "small_5"),
        (["--seeds", "a"], "must be numbers"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_written(place, words, said):
    with pytest.raises(InputError) as error:
        invoke(*words)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (place / "out").exists()


def test_no_weights_and_nothing_else_leaves_nothing_to_compare(place):
    with pytest.raises(InputError, match="nothing to compare random weights with"):
        CliRunner().invoke(worth_command, ["train", "out", "--val", "val"], catch_exceptions=False)


def test_a_folder_of_something_else_or_inside_the_images_is_refused(place):
    (place / "out").mkdir()
    (place / "out" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and was not made by beit worth"):
        invoke()
    with pytest.raises(InputError, match="would become part of train"):
        CliRunner().invoke(worth_command, ["train", "train/out", *WORDS[2:]], catch_exceptions=False)


@pytest.fixture
def stand_in(monkeypatch):
    """Let every run be done by a stand-in that notes it; a run called `stop` stops the comparison."""
    done = []

    class Stand:
        def __init__(self, **_):
            pass

        def beit(self, *words, log, watch):
            if len(done) == Stand.stop_after:
                raise ResumableStop("stopped")
            done.append(words)
            if words[0] == "finetune":
                Path(words[3]).mkdir(parents=True, exist_ok=True)

    Stand.stop_after = None
    monkeypatch.setattr(worth_run, "Runner", Stand)
    values = {"random": 0.5, "weights": 0.6}

    def measured(run, out):
        if not (run.folder(out) / "worth.json").exists():
            return {}
        return {task: ("top1", values[run.start] + 0.01 * run.seed * (run.start == "weights")) for task in run.tasks}

    monkeypatch.setattr(worth_run, "measured", measured)
    monkeypatch.setattr("beit.finetune.worth.results.measured", measured)
    return done, Stand


def test_a_stopped_comparison_goes_on_and_repeats_nothing(place, stand_in):
    done, stand = stand_in
    stand.stop_after = 5
    with pytest.raises(ResumableStop):
        invoke()
    stand.stop_after = None
    result = invoke()
    assert len(done) == 16 * 2 + 1  # the command that was cut off is given again, and goes on by itself
    assert "[16/16] 8 labels, weights, seed 1: linear probe 61.0 %, k-NN 61.0 %" in result.output
    assert "10.5 ± 6.4 points over random weights" in " ".join(result.output.split())
    again = invoke()
    assert len(done) == 33 and "16 of 16 are done" in again.output
    document = json.loads((place / "out/worth.json").read_text())
    assert document["format"] == "beit-worth" and len(document["rows"]) == 6
    assert document["rows"][0]["differences"][0]["mean"] == pytest.approx(0.105)
    with Image.open(place / "out/worth.png") as drawn:
        assert drawn.width > 3 * 400
    assert "**+10.5 ± 6.4**" in (place / "out/worth.md").read_text()


def test_more_is_added_to_a_comparison_and_another_one_is_refused(place, stand_in):
    done, _ = stand_in
    invoke()
    invoke("--seeds", "0,1,2")
    assert len(done) == 24 * 2
    for words, said in (
        (["--recipe", "small_50k"], "it had --recipe small_500, not small_50k"),
        (["--set", "optimizer.lr=1e-3"], "it had --set none, not optimizer.lr=1e-3"),
        (["--weights", "wide"], "--weights is another encoder"),
        (["--val", "train", "--labels", "4"], "same images"),
        (["--labels", "4:7"], "was made with other settings"),
    ):
        with pytest.raises(InputError, match=said):
            invoke(*words)
    assert len(done) == 48


def test_a_plan_of_which_nothing_was_made_binds_nobody(place, stand_in):
    _, stand = stand_in
    stand.stop_after = 0
    with pytest.raises(ResumableStop):
        invoke("--set", "train.epochs=2")
    stand.stop_after = None
    assert invoke("--set", "train.epochs=3").exit_code == 0
    with pytest.raises(InputError, match=r"it had --set train.epochs=3, not train.epochs=2"):
        invoke("--set", "train.epochs=2")


def test_what_was_added_contradicts_nothing():
    before = {"recipe": "a", "encoders": {"weights": "1"}}
    assert not differing(before, {"recipe": "a", "store": "s", "encoders": {"weights": "1", "scratch": "2"}})
    assert differing(before, {"recipe": "b", "encoders": {"weights": "2"}}) == ["encoders.weights", "recipe"]


def test_recipes_that_are_chosen_are_shipped_and_made_for_what_is_said():
    for name, made_for in MADE_FOR.items():
        assert tomllib.loads((RECIPES / f"{name}.toml").read_text())["data"]["made_for"] == list(made_for)
    assert {name for name in MADE_FOR if name.startswith("continue_")} == {
        path.stem for path in RECIPES.glob("continue_*.toml")
    }


@pytest.mark.parametrize(
    ("width", "img_size", "patch_size", "recipe"),
    [
        (384, 224, 16, "continue_small_patch16_224"),
        (384, 224, 14, "continue_small_patch16_224"),
        (192, 64, 8, "continue_mini_patch8_64"),
        (384, 96, 8, "continue_mini_patch8_64"),
        (128, 32, 4, "continue_mini_patch8_64"),
        (384, 224, 8, "continue_small_patch16_224"),
        (768, 64, 8, "continue_base_patch16_224"),
    ],
)
def test_an_encoder_goes_on_by_the_recipe_for_its_patches_and_side(width, img_size, patch_size, recipe):
    shape = SimpleNamespace(embed_dim=width, img_size=img_size, patch_size=patch_size)
    like = SimpleNamespace(architecture=shape)
    assert continue_recipe(like, img_size) == continue_recipe(like, None) == recipe
    assert continue_recipe(None, 64) == "continue_small_patch16_224"


def test_where_there_is_no_recipe_for_views_and_patches_it_is_said(monkeypatch):
    given = SimpleNamespace(continue_recipe=None, scratch_recipe=None, continued=None, scratch=None)
    plan = Plan(
        given=given, matrix=SimpleNamespace(starts=("continued", "scratch")), config=None, img_size=32, patch_size=4
    )
    shape = SimpleNamespace(embed_dim=192, img_size=32, patch_size=4)
    monkeypatch.setattr(Plan, "_like_before", lambda self: SimpleNamespace(architecture=shape))
    assert plan.unfit_recipes() == [
        "continued: no recipe is made for views of 32 px in patches of 4 px; continue_mini_patch8_64 is taken, made "
        "for 64 px in 8 px; --continue-recipe names another"
    ]
    given.continue_recipe = "mine.toml"
    assert not plan.unfit_recipes()


def test_numbers_of_labels():
    assert [labels.number for labels in parse_labels(None, total=1000, num_classes=3)] == [30, 150]
    assert [labels.text for labels in parse_labels(None, total=100, num_classes=20)] == ["all"]
    assert [labels.text for labels in parse_labels("100,20:5", total=100, num_classes=3)] == ["20", "all"]


def matrix(**changes):
    given = {"starts": STARTS, "labels": (Labels(text="100", number=100),), "seeds": (0, 1, 2), "tasks": tuple(TASKS)}
    return Matrix(**given | changes)


def row_of(values, **changes):
    found = matrix(starts=tuple(start for start in STARTS if start in values), **changes)
    return make_row(found, found.labels[0], "classification", {k: dict(enumerate(v)) for k, v in values.items()})


def test_a_sentence_claims_what_the_interval_carries():
    said = sentence(row_of({"weights": [0.5, 0.51, 0.52], "continued": [0.56, 0.57, 0.59]}))
    assert "continuing here is worth 6.3 ± 1.4 points over the weights as they are" in said
    said = sentence(row_of({"weights": [0.5, 0.51, 0.52], "continued": [0.46, 0.47, 0.47]}))
    assert "continuing here costs 4.3 ± 1.4 points against the weights as they are" in said


@pytest.mark.parametrize(
    ("weights", "continued", "why"),
    [
        ([0.5, 0.5, 0.5], [0.6, 0.5, 0.49], r"\+3.0 ± 15.1 points"),
        ([0.5], [0.9], "one pair says .40.0 points, and nothing about chance"),
        ([0.5, 0.5, 0.5], [0.6, 0.6, 0.6], "all 3 pairs say .10.0, too much alike"),
    ],
)
def test_a_sentence_claims_no_more(weights, continued, why):
    said = sentence(row_of({"weights": weights, "continued": continued}))
    assert "no difference between continuing here and the weights as they are is shown" in said
    assert "is worth" not in said and "costs" not in said
    assert re.search(why, said), said


def test_what_is_missing_is_said():
    said = sentence(row_of({"weights": [0.5, 0.51], "continued": [0.6]}))
    assert said.endswith("Runs are missing.")
    assert "no pair of runs is finished" in sentence(row_of({"weights": [], "continued": []}))
    assert picture([row_of({"weights": [], "continued": []})], facts="") is None


def test_tables_fit_a_terminal_and_mark_what_is_shown():
    values = {start: [0.2 * place + 0.31, 0.2 * place + 0.32, 0.2 * place + 0.34] for place, start in enumerate(STARTS)}
    values["continued"] = [0.7, 0.76, 0.73]
    rows = [row_of(values)]
    text = as_text(rows, notes=["Note."])
    assert max(map(len, text.splitlines())) <= 80
    assert "70.0" not in text and "73.0 ± 7.5" in text
    assert as_markdown(rows, notes=[]).count("**") == 4  # two pairs; the others differ alike for all seeds


def test_all_labels_are_one_choice_of_which_a_probe_has_one_value():
    everything = Labels(text="all", number=100)
    found = matrix(labels=(everything,))
    assert found.seeds_of(everything, "knn") == (0,)
    assert found.seeds_of(everything, "classification") == (0, 1, 2)


def test_time_is_measured_on_runs_of_the_same_kind(tmp_path):
    jobs = []
    for number, (kind, work, seconds) in enumerate(
        [("probe", 10, 4.0), ("probe", 20, None), ("fine-tuning", 5, 3.0), ("fine-tuning", 5, None), ("store", 1, None)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        if seconds is not None:
            (folder / "worth.json").write_text(json.dumps({"identity": {}, "seconds": seconds}))
        jobs.append(Job(folder=folder, words="", kind=kind, work=work))
    assert seconds_left(jobs) == (8.0 + 3.0, ["store"])
    assert "about 11 s left, and what no run has been measured of yet: store" in time_text(jobs)
    assert time_text(jobs[3:]).startswith("how long it takes is said once")
    assert time_text(jobs[3:], is_begun=True) == ""  # it has been said
    assert time_text([jobs[0]]) == ""
    assert [duration(seconds) for seconds in (34, 600, 7200)] == ["34 s", "10 min", "2.0 h"]


@pytest.fixture
def checked_pretrainings(monkeypatch):
    """Note the commands that `beit pretrain --check` is given, which is a process of its own, and refuse none."""
    seen = []

    def check(command, **_):
        seen.append(command[3:])
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr("beit.finetune.worth.checks.subprocess", SimpleNamespace(run=check))
    return seen


def tokenized(place):
    words = ["tokenize", "train", "store", "--img-size", "32", "--patch-size", "4", "--views", "0"]
    subprocess.run([sys.executable, "-m", "beit.cli", *words], cwd=place, check=True, capture_output=True)


def test_an_encoder_from_scratch_without_weights_is_not_made_twice(place, stand_in, checked_pretrainings, monkeypatch):
    done, stand = stand_in
    tokenized(place)

    def beit(self, *words, log, watch):
        done.append(words)
        write_encoder(Path(words[2]) / "encoder") if words[0] == "pretrain" else Path(words[3]).mkdir(parents=True)

    monkeypatch.setattr(stand, "beit", beit)
    monkeypatch.setattr("beit.finetune.worth.run.measured", lambda run, out: {})
    monkeypatch.setattr("beit.finetune.worth.results.measured", lambda run, out: {})
    words = ["train", "out", "--val", "val", "--store", "store", "--labels", "4", "--seeds", "0", "--tasks", "knn"]
    CliRunner().invoke(worth_command, words, catch_exceptions=False)
    count = len(done)
    words[words.index("store")] = f"{place}/store/"  # the same place, written otherwise
    result = CliRunner().invoke(worth_command, [*words, "--threads", "1"], catch_exceptions=False)
    assert "3 of 3 are done" in result.output and len(done) == count == 3
    [checked] = checked_pretrainings  # the finished one is not checked again
    assert checked[-1] == "--check" and checked[0] == "pretrain"


def test_what_was_begun_from_scratch_alone_is_not_given_the_budget_of_a_later_encoder(
    place, stand_in, checked_pretrainings, monkeypatch
):
    tokenized(place)

    def beit(self, *words, log, watch):
        Path(words[2]).mkdir(parents=True)
        (Path(words[2]) / "config.toml").write_text("")
        raise ResumableStop("stopped")

    monkeypatch.setattr(stand_in[1], "beit", beit)
    with pytest.raises(ResumableStop):
        invoke("--store", "store", "--starts", "random,scratch")
    with pytest.raises(InputError, match="out/scratch was begun with steps of its own"):
        invoke("--store", "store", "--starts", "random,continued,scratch")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "model.depth=3"], "the settings are for a model of .* but the encoder weights has"),
        (["--recipe", "cifar10_tiny"], "leave the size to the encoder with --set model.size=none"),
        (["--random-set", "model.depth=3"], "but the encoder weights has"),
        (["--set", "adapt=lora:4"], 'must be "all" with --encoder random.*--random-set KEY=VALUE changes random'),
        (["--set", "adapt=last:2", "--random-set", "adapt=all"], "must name at most 1 block"),
        (["--set", "freeze_blocks=2", "--starts", "weights,continued"], "must not exceed"),
    ],
)
def test_settings_that_a_fine_tuning_would_refuse_are_refused_at_once(place, words, said):
    with pytest.raises(InputError, match=said):
        invoke("--continued", "continued", *words)
    assert not (place / "out").exists()


def test_updates_of_encoders_are_held_against_random_weights_trained_in_full(place):
    result = invoke("--set", "adapt=lora:4", "--random-set", "adapt=all", "--dry-run")
    [random] = [line for line in result.output.splitlines() if "classification" in line and "-4-random-" in line]
    assert random.index("adapt=lora:4") < random.index("adapt=all")


def test_a_setting_of_a_pre_training_that_is_wrong_is_refused_before_anything_is_made(place):
    with pytest.raises(InputError, match=r"pre-training of scratch: .*trian.*did you mean.*train"):
        invoke("--images", "train", "--starts", "random,scratch", "--scratch-set", "trian.epochs=3")
    assert not (place / "out").exists()


def test_a_recipe_that_was_edited_is_another_comparison(place, stand_in):
    recipe = place / "mine.toml"
    recipe.write_text("[train]\nepochs = 2\n")
    invoke("--recipe", "mine.toml")
    recipe.write_text("[train]\nepochs = 3\n")
    with pytest.raises(InputError, match="the file of --recipe has changed since"):
        invoke("--recipe", "mine.toml", "--seeds", "0,1,2")


def test_strokes_of_a_chart_stand_beside_each_other_on_scales_that_exist():
    values = {start: [0.1, 0.99] for start in STARTS}
    rows = [row_of(values, seeds=(0, 1))]
    means, differences = _means_chart(rows, "classification"), _differences_chart(rows)
    assert len({line.points[0][0] for line in means.lines}) == len(STARTS)
    assert sum(line.points[0][0] for line in means.lines) / len(STARTS) == pytest.approx(2.0)
    assert _range([means]) == (0.0, 1.0)  # the interval of two seeds reaches beyond
    assert not differences.percent and differences.x_ticks == means.x_ticks
    shown = _differences_chart([row_of({"weights": [0.5, 0.52], "continued": [0.6, 0.63]}, seeds=(0, 1))])
    assert shown.lines[0].points[0][1] == pytest.approx(10.5)  # points, as the title says


def test_a_start_from_scratch_without_position_tables_has_no_rate_for_them(monkeypatch):
    like = SimpleNamespace(
        architecture=SimpleNamespace(pos_bias="none"), normalization=SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    plan = Plan(given=SimpleNamespace(), matrix=SimpleNamespace(), config=SimpleNamespace(), img_size=32, patch_size=4)
    monkeypatch.setattr(Plan, "_like_before", lambda self: like)
    monkeypatch.setattr("beit.finetune.worth.plan._shape_of", lambda like: [])
    assert "position_lr_scale=1" in plan._pretrained_shape()
    like.architecture.pos_bias = "shared"
    assert "position_lr_scale=1" not in plan._pretrained_shape()


def test_starts_of_one_number_of_labels_stand_beside_each_other():
    rows = [row_of({"random": [0.4, 0.5], "scratch": [0.1, 0.9]})]
    chart = _means_chart(rows, "classification")
    left, right = chart.x_range
    places = [(line.points[0][0] - left) / (right - left) for line in chart.lines]
    assert places == pytest.approx([0.493, 0.507], abs=0.002)
