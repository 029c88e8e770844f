"""The budget of a pre-training is what its seconds buy, and wrong words are refused before anything is run."""

import json
from pathlib import Path

import pytest

from beit.benchmarks import rivals
from beit.benchmarks.processor_time import ChildMeter, processor_seconds
from beit.benchmarks.rival_table import as_markdown, picture, row_of
from beit.common.errors import InputError


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "claim", None)  # nobody gets as far as that
    (tmp_path / "images").mkdir()
    return ["--train", str(tmp_path / "images"), "--val", str(tmp_path / "images"), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["--starts", "beit,clip"], "--starts beit,clip must be among beit,dino,mae,random"),
        (["--seconds", "0"], "--seconds 0 must be above 0"),
        (["--views", "0"], "--views 0 must be 1 or more"),
        (["--labels", "0"], "--labels 0 must be 1 or more"),
        (["--seeds", "a"], "--seeds 'a' must be numbers"),
        (["--train", "nowhere"], "--train nowhere does not exist"),
        (["--shape", "train.steps=3"], "--shape train.steps=3 must be settings model"),
        (["--shape", "model.num_heads=7"], "must be a multiple of model.num_heads \\(7\\)"),
        (["--dino-set", "local_size=10"], "local_size \\(10\\) must be a multiple of the patch size \\(4\\)"),
        (["--dino-set", "learning.lr=0"], "learning.lr \\(0.0\\) must be above 0"),
        (["--mae-set", "mask_ratio=1"], "mask_ratio \\(1.0\\) must lie in \\(0, 1\\)"),
        (["--mae-set", "decoder_heads=7"], "decoder_dim \\(64\\) must be a multiple of 4 and of decoder_heads \\(7\\)"),
        (["--mae-set", "nothing=7"], "nothing"),
        (["--beit-recipe", "none"], "none"),
    ],
)
def test_wrong_words_are_refused_in_one_line_and_nothing_is_made(words, own, said, tmp_path):
    with pytest.raises(InputError, match=said) as refused:
        rivals.main([*words, *own], standalone_mode=False)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


class Measured(rivals.Pretrainer):
    """A method that takes 10 seconds to start and half a second for a step."""

    def pretrain(self, method, folder, *, steps, seed):
        self.asked = [*getattr(self, "asked", []), steps]
        return {"seconds": 10 + steps / 2}


def plan_of(folder, **changes):
    settings = {
        "train": "t",
        "val": "v",
        "out": folder,
        "seconds": 110.0,
        "views": 1,
        "given_store": None,
        "shape": (),
        "labels": 5,
    }
    settings |= {"finetune_epochs": 1.0, "recipe": "beit_tiny_patch4_32", "beit": ()}
    return rivals.Comparison(**settings | changes, dino=rivals.DinoConfig(), mae=rivals.MaeConfig())


def test_a_budget_is_measured_once_and_start_up_counts(tmp_path):
    pretrainer = Measured(plan=plan_of(tmp_path), runner=None, stop=None)
    assert [pretrainer.steps_for_budget("mae") for _ in range(2)] == [200, 200]
    assert pretrainer.asked == list(rivals.SHORT_RUNS["mae"])
    other = Measured(plan=plan_of(tmp_path, seconds=90.0), runner=None, stop=None)
    with pytest.raises(InputError, match="was made with other settings"):
        other.steps_for_budget("mae")


def test_seconds_that_buy_less_than_the_measuring_are_refused(tmp_path):
    pretrainer = Measured(plan=plan_of(tmp_path, seconds=20.0), runner=None, stop=None)
    with pytest.raises(InputError, match="--seconds 20 is too little for beit"):
        pretrainer.steps_for_budget("beit")


def test_every_method_has_the_network_of_beit():
    plan = plan_of(Path(), shape=("model.embed_dim=32", "model.depth=3", "model.num_heads=2"))
    for method, scale in (("dino", plan.dino.layer_scale), ("mae", plan.mae.layer_scale)):
        config = plan.build(method).result().config
        assert (config.embed_dim, config.depth, config.pos_bias, config.init_values) == (32, 3, "shared", scale), method


def test_the_table_pairs_seeds_and_says_what_was_spent():
    by_start = {"beit": {0: 0.5, 1: 0.6}, "dino": {0: 0.4, 1: 0.65}, "random": {0: 0.2}}
    rows = [row_of("linear-probe", start, by_start) for start in by_start]
    assert rows[1]["beit_less_this"]["mean"] == pytest.approx(0.025) and rows[1]["wins_of_beit"] == 1
    assert rows[2]["beit_less_this"]["num_values"] == 1
    costs = {"beit": [{"steps": 10, "images": 320, "seconds": 99.4}], "dino": []}
    facts = {"costs": costs, "token_seconds": 12.0, "settings": {"seconds": 100.0, "labels": 7}}
    table = as_markdown(json.loads(json.dumps(rows)), facts)
    assert "| BEiT | 10 | 320 | 99 |" in table and "| linear probe | DINO | 52.5 ± " in table
    assert "1 of 2 |" in table and "1 of 1 |" in table and "| DINO | 0" not in table
    assert picture(rows, facts).width > 300


def test_the_processor_time_of_a_command_is_kept_over_its_starts(tmp_path, monkeypatch):
    import subprocess
    import sys

    work, file = [sys.executable, "-c", "sum(range(3_000_000))"], tmp_path / "seconds.json"
    total, before = 0.0, processor_seconds()
    for _ in range(2):
        with ChildMeter(file) as meter:
            subprocess.run(work, check=True)
        assert meter.seconds > total
        total = meter.seconds
    assert json.loads(file.read_text())["seconds"] == total <= processor_seconds() - before + 1e-6


def test_what_a_running_command_uses_is_noted(tmp_path, monkeypatch):
    import subprocess
    import sys

    monkeypatch.setattr("beit.benchmarks.processor_time._NOTE_SECONDS", 0.0)
    file = tmp_path / "seconds.json"
    meter = ChildMeter(file)
    with subprocess.Popen(
        [sys.executable, "-c", "sum(range(3_000_000)); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        child.stdout.readline()
        meter.note()
        assert json.loads(file.read_text())["seconds"] > 0
        child.stdin.close()
