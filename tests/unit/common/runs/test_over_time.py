"""Pictures that a run keeps of a few moments."""

import numpy as np
from PIL import Image

from beit.common.pages.cells import described, read_sheet
from beit.common.pages.pictures import picture_table, sheet
from beit.common.runs.metrics import MetricsLog
from beit.common.runs.over_time import SHARES, is_moment, moments


def kept_of(evaluations, total_steps, kept=()):
    kept = list(kept)
    for step in evaluations:
        if is_moment(step, total_steps, kept):
            kept.append(step)
    return kept


def test_the_first_and_the_last_evaluation_are_kept_and_few_in_between():
    assert kept_of(range(10, 1001, 10), 1000) == [10, 70, 130, 250, 500, 750, 1000]
    assert kept_of([1000], 1000) == [1000]
    assert kept_of([400, 800, 1000], 1000) == [400, 800, 1000]
    assert len(kept_of(range(1, 100_001), 100_000)) == len(SHARES)


def test_a_run_that_goes_on_keeps_what_it_would_have_kept():
    whole = kept_of(range(10, 1001, 10), 1000)
    before = kept_of(range(10, 301, 10), 1000)
    from_a_checkpoint = [step for step in before if step <= 200]
    assert kept_of(range(210, 1001, 10), 1000, from_a_checkpoint) == whole


def test_moments_stay_beside_the_newest_and_those_of_lost_work_go(tmp_path):
    log = MetricsLog(tmp_path, 0, total_steps=100)
    for step in range(5, 61, 5):
        picture = np.full((8, 8, 3), step, np.uint8)
        log.picture("reconstruction", sheet([picture_table([[picture]])], heading="H", facts=f"step {step}"), step)
    log.close()
    kept = moments(tmp_path)["reconstruction"]
    assert list(kept) == [5, 10, 15, 25, 50]
    assert described(read_sheet(kept[25])).facts == "step 25"
    assert described(read_sheet(tmp_path / "reconstruction.png")).facts == "step 60"
    MetricsLog(tmp_path, 20, total_steps=100).close()
    assert list(moments(tmp_path)["reconstruction"]) == [5, 10, 15]


def test_other_files_in_the_folder_are_no_moments(tmp_path):
    assert moments(tmp_path) == {}
    (tmp_path / "pictures").mkdir()
    for name in ("reconstruction-step-.png", "attention.png", "x-step-5.jpg", "reconstruction-step-7.png.tmp.1"):
        (tmp_path / "pictures" / name).touch()
    Image.new("RGB", (2, 2)).save(tmp_path / "pictures/reconstruction-step-12.png")
    assert list(moments(tmp_path)["reconstruction"]) == [12]
