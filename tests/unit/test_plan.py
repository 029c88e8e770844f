"""`beit plan`: from a laptop to 64 GPUs, what would fail with the way out, and the same numbers as JSON."""

import json
import shlex
import subprocess
import sys
from collections import namedtuple

import pytest
from click.testing import CliRunner

from beit import plan
from beit.common.errors import InputError
from beit.common.forecast.hardware import named
from beit.common.pages.tables import columns
from beit.pretrain.forecast import forecast, load
from beit.tests.support import write_images, write_store

MODEST = ["model.size=tiny", "model.embed_dim=24", "model.depth=2", "model.num_heads=2"]
TINY = [word for setting in MODEST for word in ("--set", setting)]


def planned(*words, code=0):
    result = CliRunner().invoke(plan.plan_command, [*map(str, words), "--json", "-"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def shown(*words, code=0):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(plan.plan_command, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (["150"], "beit_mini_patch8_64"),
        (["5k"], "beit_tiny_patch8_64"),
        (["50k", "--gpu", "RTX 4090"], "beit_small_patch16_224"),
        (["1281167", "--gpu", "A100", "--gpus", "8"], "beit_base_patch16_224_1k"),
        (["14M", "--gpu", "A100", "--gpus", "8", "--machines", "8", "--labels", "50k"], "beit_base_patch16_224_22k"),
    ],
)
def test_from_a_laptop_to_64_gpus(words, recipe):
    text = shown(*words)
    assert max(columns(line) for line in text.splitlines()) <= 80
    assert f"--recipe {recipe}" in text and "will fail" not in text
    for heading in ("tokenize", "pretrain", "commands", "advice", "assumed"):
        assert f"\n{heading}\n" in text


def test_the_numbers_are_those_of_the_stage_itself():
    document = planned("14M", "--gpu", "A100", "--gpus", 8, "--machines", 8)
    tokens, training = document["stages"]["tokenize"], document["stages"]["pretrain"]
    assert tokens["num_words"] == 14_000_000 * 16 * 14 * 14 and tokens["num_shards"] == 14_000
    found = forecast(
        load("beit_base_patch16_224_22k"),
        num_images=14_000_000 - tokens["num_held_out"],
        num_held_out=tokens["num_held_out"],
        img_size=224,
        patch_size=16,
        vocab_size=8192,
        views=16,
        num_shards=14_000,
        hardware=named("A100", num_devices=64, num_machines=8),
    )
    assert training["steps"] == found.steps
    assert training["seconds"] == pytest.approx(found.total_seconds + training["start_seconds"])
    assert training["memory_bytes"] == found.memory.total and training["disk_bytes"] == found.disk_bytes
    table = {row["zero_stage"]: row["bytes_by_micro_batch"] for row in document["memory"]}
    assert table[0][str(found.micro_batch_size)] == found.memory.total
    assert table[0]["1"] > table[1]["1"] > table[2]["1"] > table[3]["1"]


def test_a_source_is_looked_at(tmp_path):
    images = write_images(tmp_path / "some photos", 40, size=40)
    document = planned(images, *TINY)
    assert document["images"]["count"] == 40 and document["images"]["is_counted"]
    assert document["recipe"]["name"] == "beit_tiny_patch4_32"  # by the size of the images
    assert shlex.split(document["commands"][0])[:4] == ["beit", "tokenize", str(images), "store"]


def test_a_store_that_is_there_is_not_made_again(tmp_path):
    store = write_store(tmp_path, images=40)
    document = planned(store.location, *TINY, "--set", "train.global_batch_size=8", "--set", "train.epochs=400")
    assert list(document["stages"]) == ["pretrain"]
    assert document["stages"]["pretrain"]["num_held_out"] == int(store.shards.num_held_out.sum())
    assert document["stages"]["pretrain"]["view_reuse"] == pytest.approx(400 / 3, rel=0.01)
    assert [command.split()[1] for command in document["commands"]] == ["pretrain"]


def test_numbers_are_written_for_people():
    text = " ".join(shown("1", "--labels", 1, code=1).split())
    assert "the 1 image to train on: a step has each 32 times, and 2000 steps = 64,000 epochs" in text
    assert "each of 64 is seen 1,000 times" in text and "validated on 1 image" in text and "e+0" not in text
    assert "the only one is seen 533 times" in " ".join(shown("150", "--views", 1).split())


def test_several_machines_tokenise_one_store_and_one_of_them_packs():
    several = ("14M", "--gpu", "H100", "--gpus", 8, "--machines", 8)
    assert "start the command on each of the 8 machines" in " ".join(shown(*several).split())
    assert "start the command" not in shown(*several[:-2])
    packing = 14e6 * 110e3 / 500e6  # seconds
    assert planned(*several)["stages"]["tokenize"]["seconds"] > packing


def test_what_no_pass_reaches_is_not_made():
    views = {count: planned(count)["stages"]["tokenize"]["settings"]["views"] for count in ("150", "800")}
    assert views == {"150": 64, "800": 64}
    assert planned("50k")["stages"]["tokenize"]["settings"]["views"] == 2  # 64,000 crops of 50,000 images
    assert planned("50k", "--views", 8)["stages"]["tokenize"]["settings"]["views"] == 8


def test_settings_of_every_stage():
    settings = ["train.steps=77", "tokenize.short_side=96", "finetune.train.epochs=3"]
    words = [word for setting in settings for word in ("--set", setting)]
    document = planned("500", "--recipe", "beit_mini_patch8_64", "--labels", 320, *words)
    assert document["stages"]["pretrain"]["steps"] == 77
    assert document["stages"]["tokenize"]["settings"]["short_side"] == 96
    assert document["stages"]["finetune"]["steps"] == 30
    assert "--set train.steps=77" in document["commands"][1] and "--set train.epochs=3" in document["commands"][2]


@pytest.mark.parametrize(
    ("words", "what", "way_out"),
    [
        (["3"], "3 images leave 3 to train on and 0 to measure on", "at least 5 images"),
        (["1k", "--gpus", "3"], "cannot be shared by 3 ranks", "start one of 1, 2, 4 ranks, or set it to 33"),
        (["9k", "--set", "deepspeed.zero_stage=2", "--set", "optimizer.kind=muon"], "muon", "zero_stage"),
        (
            ["50k", "--gpu", "T4", "--recipe", "beit_large_patch16_224_1k", "--set", "train.micro_batch_size=512"],
            "needs about",
            "train.micro_batch_size",
        ),
        (["500", "--views", "0"], "holds no tokens", "--views 1"),
        (["500", "--set", "reader.lanes=3"], "reader.lanes (3)", "valid here"),
    ],
)
def test_what_would_fail_and_the_way_out(words, what, way_out):
    document = planned(*words, code=1)
    fatal = [problem for problem in document["problems"] if problem["is_fatal"]]
    assert any(what in problem["what"] for problem in fatal), fatal
    assert any(way_out in problem["what"] + problem["way_out"] for problem in fatal), fatal
    assert not document["is_possible"] and "will fail" in shown(*words, code=1)


@pytest.mark.parametrize(
    ("words", "what", "way_out"),
    [
        (["500", "--set", "train.global_batch_size=2048"], "is more than the", "train.global_batch_size="),
        (["50k", "--gpu", "V100", "--gpus", "8"], "no bf16", "train.precision=fp16"),
        (["5M", "--gpu", "B200", "--recipe", "beit_small_patch16_224"], "keeps a GPU waiting", "reader.num_workers="),
        (["1k", "--gpus", "2"], "1 shard for 2 ranks", "shard_size"),
        (["500", "--recipe", "beit_mini_patch8_64", "--set", "tokenize.img_size=96"], "made for views of 64 px", ""),
        (["500", "--set", "train.steps=10"], "is little to pre-train on", "Train longer"),
    ],
)
def test_what_works_but_is_to_be_minded(words, what, way_out):
    others = [problem for problem in planned(*words)["problems"] if not problem["is_fatal"]]
    assert any(what in problem["what"] for problem in others), others
    assert any(way_out in problem["what"] + problem["way_out"] for problem in others), others


def test_a_disk_that_is_too_small_for_all_stages_together(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    fatal = [problem for problem in planned("500", code=1)["problems"] if problem["is_fatal"]]
    assert "and here are 1 MB free" in fatal[0]["what"] and "another disk" in fatal[0]["way_out"]
    assert planned("500", "--gpu", "A100")["is_possible"]  # of another machine's disk nothing is known


def test_a_plan_with_measured_rates(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "_MEASURED_SECONDS", 0.1)
    images = write_images(tmp_path / "images", 12, size=32)
    before = sorted(tmp_path.rglob("*"))
    document = planned(images, "--measure", *TINY, "--labels", 20)
    assert document["hardware"]["flops_source"].startswith("measured here in ")
    stages = document["stages"]
    assert all(stages[name]["seconds"] > 0 for name in ("tokenize", "pretrain", "finetune"))
    assert not any("how fast" in words for words in document["assumptions"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_needs_no_torch():
    code = "import sys; from beit.plan import Question, answer; answer(Question(images='150', labels='50')); "
    code += "print(*{'torch', 'pyarrow', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["150", "--gpu", "nonsense"], "--gpu .nonsense."),
        (["150", "--gpu", "A100", "--measure"], "leave one out"),
        (["150", "--labels", "many"], "--labels .many. must be a number"),
        (["0"], "no number of images"),
        (["150", "--recipe", "beit_tiny"], "did you mean"),
        (["150", "--set", "train.epoch=3"], "train.epoch"),
        (["150", "--set", "tokenize.view=3"], "views"),
        (["150", "--labels", "9", "--set", "finetune.nonsense=3"], "nonsense"),
        (["150", "--set", "finetune.train.epochs=3"], "needs --labels"),
        (["missing"], "missing"),
    ],
)
def test_wrong_input_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        planned(*words)


def test_the_document_beside_the_table(tmp_path):
    file = tmp_path / "new/plan.json"
    text = shown("150", "--json", file)
    assert "in all" in text and json.loads(file.read_text())["format"] == "beit-plan"
