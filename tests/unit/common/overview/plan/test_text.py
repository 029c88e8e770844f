"""A plan fits a terminal of 80 columns, says what matters first, and its JSON says the same."""

import dataclasses
import json
import re

import pytest

from beit.common.forecast.hardware import named
from beit.common.forecast.rules import Problem
from beit.common.overview.plan.advice import Advice
from beit.common.overview.plan.document import Images, MemoryRow, Plan, Stage
from beit.common.overview.plan.text import plan_text
from beit.common.pages.tables import columns

LONG = "a rather long sentence about what is to come, " * 4
PLAN = Plan(
    images=Images(name="photos/of/some/length", count=1_281_167, mean_bytes=110_000, is_counted=True),
    num_labels=500,
    hardware=named("V100", num_devices=16, num_machines=2),
    recipe="beit_base_patch16_224_1k",
    recipe_reason="the paper's, for about a million photos",
    stages=(
        Stage(
            name="tokenize",
            short="20.5 million views",
            seconds=14_000,
            memory_bytes=2.1e9,
            disk_bytes=15.3e9,
            facts=(("shards", LONG),),
            numbers={"num_shards": 1282},
        ),
        Stage(
            name="pretrain",
            short="500,456 steps of 2048",
            seconds=4.9 * 86_400,
            memory_bytes=14.1e9,
            disk_bytes=3.4e9,
            facts=(("views", "each seen 50 times"), ("disk", LONG)),
            numbers={},
        ),
    ),
    memory=tuple(
        MemoryRow(zero_stage=stage, bytes_by_micro_batch={size: 1e9 + size * 1e8 for size in (1, 128, 512)})
        for stage in (0, 2)
    ),
    micro_batch_size=128,
    zero_stage=2,
    problems=(
        Problem(what="the disk has 3 GB, and 15 GB are needed", way_out="--views 4", is_fatal=True),
        Problem(what="a GPU waits for its data", way_out="--set reader.num_workers=8", is_fatal=False),
    ),
    advice=(Advice(topic="batch", what=f"take smaller batches {LONG}", why=LONG, where="results.md"),),
    commands=("beit tokenize photos store --views 16 " + "--set a.rather.long.setting=1 " * 4,),
    assumptions=(LONG,),
)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_no_line_is_longer_than_a_terminal():
    assert max(columns(line) for line in plan_text(PLAN).splitlines()) <= 80


def test_what_will_fail_stands_before_the_details():
    text = plan_text(PLAN)
    places = [
        text.index(words) for words in ("in all", "will fail", "will work, but mind", "\ntokenize\n", "memory of")
    ]
    assert places == sorted(places)
    assert "x the disk has 3 GB, and 15 GB are needed; --views 4" in text and "! a GPU waits" in text


def test_the_sum_of_all_stages():
    row = next(line.split() for line in plan_text(PLAN).splitlines() if line.startswith("  in all"))
    assert row == ["in", "all", "5.1", "days", "14.1", "GB", "18.7", "GB"]


def test_a_stage_of_unknown_time_leaves_the_sum_unknown():
    first = dataclasses.replace(PLAN.stages[0], seconds=None)
    plan = dataclasses.replace(PLAN, stages=(first, PLAN.stages[1]))
    assert plan.total_seconds() is None
    assert re.search(r"in all\s+-\s", plan_text(plan))


def test_what_does_not_fit_is_in_brackets_and_what_is_planned_has_a_star():
    text = plan_text(PLAN)
    assert re.search(r"ZeRO 0\s+1\.1\s+13\.8\s+\(52\.2\)", text)
    assert re.search(r"ZeRO 2\s+1\.1\s+13\.8\*\s+\(52\.2\)", text)
    assert "* as planned; in brackets: more than the 32 GB it has" in text


def test_a_command_can_be_copied():
    lines = plan_text(PLAN).partition("commands\n")[2].partition("\n\n")[0]
    assert lines.replace("\\\n", "").split() == PLAN.commands[0].split()


def test_the_document_has_every_number():
    document = json.loads(json.dumps(PLAN.to_json()))
    assert (document["format"], document["format_version"]) == ("beit-plan", 1)
    assert document["stages"]["tokenize"]["num_shards"] == 1282
    assert document["stages"]["pretrain"]["seconds"] == 4.9 * 86_400
    assert document["memory"][1]["bytes_by_micro_batch"]["128"] == 1e9 + 128e8
    assert document["is_possible"] is False and document["problems"][0]["is_fatal"]
    assert document["hardware"]["num_devices"] == 16


def test_a_plan_without_fatal_problems_is_possible():
    assert dataclasses.replace(PLAN, problems=PLAN.problems[1:]).is_possible
