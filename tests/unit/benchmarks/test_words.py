"""The table of words: what is wrong is one line before anything is made, and no table mixes settings."""

from pathlib import Path

import click
import pytest

from beit.benchmarks import words
from beit.common.errors import InputError
from beit.common.storage.documents import write_json


def note(file: Path, command: list[str]) -> None:
    file.parent.mkdir(parents=True)
    write_json(file, {"identity": {"command": command}, "seconds": 1.0})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    return tmp_path


def call(*own: str) -> None:
    words.main(["--train", "images", "--val", "images", "--out", "out", *own], standalone_mode=False)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["--rows", "none"], "--rows none must be among mini"),
        (["--rows", ""], "--rows  must be among mini"),
        (["--seeds", "0,0"], "--seeds 0,0 names a seed twice"),
        (["--steps", "0"], "0 is not in the range x>=1"),
        (["--finetune-epochs", "-1"], "-1.* is not in the range x>=0"),
        (["--train", "nowhere"], "--train nowhere does not exist"),
        (["--shape", "model.embed_dim=7"], r"embed_dim \(7\)"),
        (["--pretrain-set", "train.stepps=3"], "train.stepps.*train.steps"),
        (
            ["--tokenizer-set", "train.steps=3"],
            "--tokenizer-set train.steps=3 must be KIND:KEY=VALUE, with a kind of dvae",
        ),
        (["--tokenizer-set", "vqkd:model.depht=3"], "model.depht.*model.depth"),
        (["--table"], "--table: nothing is finished in out; leave it out"),
    ],
)
def test_wrong_words_are_refused_in_one_line_and_nothing_is_made(
    own: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "claim", None)  # nobody gets as far as that
    with pytest.raises((InputError, click.ClickException), match=said) as caught:
        call(*own)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("own", [["--views", "1"], ["--rows", "dvae", "--views", "1"], ["--views", "1", "--table"]])
def test_what_was_made_with_other_settings_comes_into_no_table(
    own: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "claim", None)
    command = ["tokenize", "elsewhere/images", "elsewhere/store", "--views", "2", "--seed", "1"]
    note(folder / "out/seed-1/mini/store.done.json", command)
    with pytest.raises(InputError, match=r"mini/store was made with --views 2 where these options say .*--views 1"):
        call(*own)


def test_where_images_and_results_lie_makes_no_difference_to_the_table(folder: Path) -> None:
    given = {"views": 2, "steps": 9, "tokenizer_steps": 9, "vocab_size": 64, "labels": 5, "few_labels": 2}
    given |= {"finetune_epochs": 0.0, "val_images": 3, "report_images": 4, "teacher_block": None, "tokenizer_set": ()}
    given |= {"shape": ("model.depth=2",), "pretrain_set": ()}
    there, here = (
        words.Bench(train=f"{place}/images", val="val", out=folder / place, **given) for place in ("there", "here")
    )
    command = there.commands("kmeans-1", 3)["store"]
    assert words.check_finished(here) == 0
    note(folder / "here/seed-3/kmeans-1/store.done.json", command)
    assert words.check_finished(here) == 1
