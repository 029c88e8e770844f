"""The script behind the table of BEiT and its rivals runs from images to the table, and repeats nothing."""

import json

import pytest
from PIL import Image

import beit
from beit.benchmarks import rivals
from beit.common.errors import InputError
from beit.tests.docs.test_unlabelled_images import write_parquet
from beit.tests.support import files_of

TINY = "model.embed_dim=16,model.depth=2,model.num_heads=2"
SETTINGS = {
    "--dino-set": ["learning.batch_size=4", "outputs=16", "hidden_dim=16", "bottleneck_dim=8", "local_crops=2"],
    "--mae-set": ["learning.batch_size=4", "decoder_dim=16", "decoder_depth=1"],
    "--beit-set": ["train.global_batch_size=4", "held_out.pictures=0"],
}


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "train.parquet", 100)
    write_parquet(tmp_path / "val.parquet", 30)
    found = ["--train", "train.parquet", "--val", "val.parquet", "--out", "out", "--shape", TINY, "--labels", "20"]
    found += ["--views", "1", "--seeds", "0", "--seconds", "9"]
    return found + [word for option, values in SETTINGS.items() for value in values for word in (option, value)]


def run(words):
    rivals.main(words, standalone_mode=False)


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_rivals_makes_its_table_and_repeats_nothing(tmp_path, words, monkeypatch, capfd):
    monkeypatch.setattr(rivals.Pretrainer, "steps_for_budget", lambda self, method: 3)
    probes = {name: task for name, task in rivals.PROBES.items() if name != "knn-mean"}  # each is a process
    monkeypatch.setattr(rivals, "PROBES", probes)
    monkeypatch.setattr(rivals, "MEASURES", [*probes, "fine-tuned"])
    trained = [*words, "--finetune-epochs", "0", "--starts", "beit,dino,mae"]
    run(trained)
    printed = capfd.readouterr().out
    document = json.loads((tmp_path / "out/rivals.json").read_text())
    assert {method: costs[0]["images"] for method, costs in document["costs"].items()} == dict.fromkeys(
        ("beit", "dino", "mae"), 12
    )
    assert all(costs[0]["seconds"] > 0 for costs in document["costs"].values()) and document["token_seconds"] > 0
    assert [(row["measure"], row["start"]) for row in document["rows"]] == [
        (measure, start) for measure in probes for start in ("beit", "dino", "mae")
    ]
    assert all(0 <= row["by_seed"]["0"] <= 1 for row in document["rows"])
    for method in ("dino", "mae"):
        encoder = beit.load_encoder(tmp_path / f"out/{method}-seed0/pretrain")
        assert encoder.config.embed_dim == 16 and encoder.config.final_norm
    with Image.open(tmp_path / "out/rivals.png") as drawn:
        assert drawn.width >= 600
    before = files_of(tmp_path / "out")
    run(trained)
    assert capfd.readouterr().out == printed
    after = files_of(tmp_path / "out")
    assert {path for path, data in after.items() if data != before.get(path)} <= {"rivals.json", "rivals.png"}
    run([*words, "--finetune-epochs", "7", "--starts", "random"])
    table = capfd.readouterr().out
    assert "| fine-tuned | random weights |" in table and "| linear probe | DINO |" in table
    with pytest.raises(InputError, match="was made with other settings"):
        run([*words, "--finetune-epochs", "0", "--starts", "mae", "--mae-set", "mask_ratio=0.5"])
