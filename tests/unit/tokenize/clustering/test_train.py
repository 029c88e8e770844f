"""Words by k-means from images to a store: what is written, exact resume in every phase, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beit.common.config import config_from_dict
from beit.common.encoder import load_encoder, save_model
from beit.common.errors import InputError, ResumableStop
from beit.common.store import open_store
from beit.common.tokenizer import load_tokenizer
from beit.common.tokenizers.kmeans import KMeansTokenizer
from beit.common.tokenizers.patches import cut_patches
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.vit import VisionTransformer
from beit.tests.support import files_of, write_images
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.clustering.config import ClusteringConfig
from beit.tokenize.clustering.train import Clustering, build_network, train_kmeans
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.kinds import TeacherChoice
from beit.tokenize.run import run_tokenize
from beit.tokenize.teacher import load_teacher

SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"vocab_size": 12},
    "data": {"patches_per_view": 6, "num_eval_images": 4},
    "clustering": {
        "steps": 4,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "painting_steps": 2,
        "revive_threshold": 0.9,
    },
    "checkpoint": {"interval_steps": 2},
    "reader": {"num_workers": 0},
}
PIXELS: dict[str, dict[str, Any]] = {"model": {"patch_size": 4}, "data": {"view_size": 16}}
WRITTEN = ("model.safetensors", "decoder.safetensors", "config.json", "README.md")


def settings(**changes: dict[str, Any]) -> ClusteringConfig:
    return config_from_dict(
        ClusteringConfig, {name: values | changes.get(name, {}) for name, values in SETTINGS.items()}
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("images"), 20, size=24))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    shape = ViTConfig(img_size=16, patch_size=4, embed_dim=12, depth=3, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = VisionTransformer(shape).state_dict()
    described = EncoderConfig(architecture=shape, normalization=Normalization((0.4,) * 3, (0.2,) * 3), task="pretrain")
    save_model(folder, state, described)
    return str(folder)


def train(images: str, out: Path, teacher: TeacherChoice | None = None, **changes: dict[str, Any]) -> None:
    train_kmeans(settings(**(changes if teacher else PIXELS | changes)), images, out, teacher=teacher)


def test_words_of_pixels_go_into_a_store_and_are_audited(images: str, tmp_path: Path) -> None:
    train(images, tmp_path / "words")
    tokenizer = load_tokenizer(tmp_path / "words")
    assert (tokenizer.vocab_size, tokenizer.downsampling, tokenizer.img_size) == (12, 4, None)
    config = TokenizeConfig(
        tokenizer=str(tmp_path / "words"), views=2, img_size=32, patch_size=8, shard_size=8, threads=1, workers=1
    )
    run_tokenize(config, images, tmp_path / "store")
    assert open_store(tmp_path / "store")[0]["token_ids"].shape == (2, 4, 4)
    assert not verify_store(str(tmp_path / "store"), audit=8).problems


def test_words_of_features_need_no_teacher_any_more(images: str, encoder: str, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "encoder")
    train(images, tmp_path / "words", TeacherChoice(str(tmp_path / "encoder"), 1))
    shutil.rmtree(tmp_path / "encoder")
    tokenizer = load_tokenizer(tmp_path / "words", need_decoder=True)
    assert tokenizer.img_size == 16
    config = TokenizeConfig(
        tokenizer=str(tmp_path / "words"), views=1, img_size=32, patch_size=8, shard_size=8, threads=1, workers=1
    )
    run_tokenize(config, images, tmp_path / "store")
    assert not verify_store(str(tmp_path / "store"), audit=8).problems
    card, document = (
        (tmp_path / "words/README.md").read_text(),
        json.loads((tmp_path / "words/config.json").read_text()),
    )
    assert "features of block 1 of the encoder" in card and "are not meant to be painted" in card
    assert document["model"]["vit"]["depth"] == 2 and document["training"]["teacher"]["block"] == 1
    assert set(document["training"]["metrics"]) >= {"words_used", "perplexity", "closeness", "psnr"}


def test_vectors_are_the_teacher_s_features(encoder: str) -> None:
    network, teacher = build_network(settings(), TeacherChoice(encoder, 1))
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(
            network.describe(pixels).permute(0, 3, 1, 2), load_teacher(encoder, block=1).features(pixels)
        )
    assert teacher is not None and load_encoder(encoder).config.depth == 3


def test_what_is_painted_is_the_mean_of_the_patches_with_that_word(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    paint = Clustering._paint
    monkeypatch.setattr(
        Clustering, "_paint", lambda self, words, patches: (seen.append((words, patches)), paint(self, words, patches))
    )
    train(images, tmp_path / "words", data={"view_size": 16, "patches_per_view": 16})
    words, patches = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(words) == 2 * 8 * 16
    painted = load_tokenizer(tmp_path / "words").decode(np.arange(12).reshape(1, 1, 12))
    cut = cut_patches(torch.from_numpy(painted).permute(0, 3, 1, 2), 4)[0, 0]
    for word in range(12):
        mean = patches[words == word].double().mean(0) if (words == word).any() else torch.full((3, 4, 4), 128.0)
        assert (cut[word] - mean).abs().max() <= 0.5


@pytest.mark.parametrize("moment", [1, 2, 3, 5], ids="after {} batches".format)
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_run_goes_on_to_the_same_words(
    images: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, how: str
) -> None:
    teacher = TeacherChoice(encoder, None)
    train(images, tmp_path / "whole" / "words", teacher)
    take = Clustering._take_batch

    def interrupted(self: Clustering, stream: Any) -> dict[str, float]:
        if self.step == moment and how == "killed":
            raise RuntimeError("as if killed")
        if self.step == moment - 1 and how == "stopped":
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, stream)

    out = tmp_path / "parts" / "words"
    with monkeypatch.context() as patched:
        patched.setattr(Clustering, "_take_batch", interrupted)
        with pytest.raises(ResumableStop if how == "stopped" else RuntimeError) as error:
            train(images, out, teacher)
    if how == "stopped":
        assert f"stopped at batch {moment} (SIGINT), all of it saved; run the same command" in str(error.value)
    assert not (out / "model.safetensors").exists()
    train(images, out, teacher)
    for name in WRITTEN[:3]:  # the card names the folder
        assert (out / name).read_bytes() == (tmp_path / "whole/words" / name).read_bytes(), name


def test_a_finished_run_is_left_as_it_is(
    images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(images, tmp_path / "words")
    before = {name: data for name, data in files_of(tmp_path / "words").items() if name in WRITTEN}
    monkeypatch.setattr(Clustering, "_take_batch", lambda *args: pytest.fail("nothing is left to do"))
    with caplog.at_level("INFO"):
        train(images, tmp_path / "words")
    assert "is finished (6 batches); name another folder" in caplog.text
    assert {name: files_of(tmp_path / "words")[name] for name in WRITTEN} == before
    for lost in ("config.json", "README.md"):  # as after a kill between two files
        (tmp_path / "words" / lost).unlink()
        train(images, tmp_path / "words")
        assert {name: files_of(tmp_path / "words")[name] for name in WRITTEN} == before


def test_what_cannot_be_is_one_line_and_leaves_nothing(images: str, encoder: str, tmp_path: Path) -> None:
    out, teacher = tmp_path / "words", TeacherChoice(encoder, None)
    for choice, changes, message in (
        (None, {"data": {"view_size": 18}}, r"data.view_size \(18\) must be a multiple of model.patch_size \(4\)"),
        (None, {"model": {"patch_size": 4, "vocab_size": 49}}, r"model.vocab_size \(49\) is more than the 48 patches"),
        (teacher, {"model": {"patch_size": 8}}, r"model.patch_size \(8\) is 4 with this --teacher"),
        (teacher, {"data": {"view_size": 32}}, r"data.view_size \(32\) is 16 with this --teacher"),
        (teacher, {"model": {"standardise": "patch"}}, r"standardise \(patch\) is for words of pixels"),
        (TeacherChoice(encoder, 3), {}, r"--teacher-block \(3\) must be in \[0, 2\]"),
        (TeacherChoice("some.module:Class", None), {}, r"must be an encoder: words by k-means carry the blocks"),
    ):
        with pytest.raises(InputError, match=message):
            train(images, out, choice, **changes)
    assert not out.exists()


def test_a_run_goes_on_with_its_own_teacher_and_images_only(images: str, encoder: str, tmp_path: Path) -> None:
    source = shutil.copytree(images, tmp_path / "photos")
    out, teacher = tmp_path / "words", TeacherChoice(encoder, 2)
    train(str(source), out, teacher)
    with pytest.raises(InputError, match="is of another --teacher than the one given; give the same, or"):
        train(str(source), out, TeacherChoice(encoder, 1))
    (source / "0000.png").write_bytes((source / "0001.png").read_bytes())
    with pytest.raises(InputError, match="the images differ from those of the checkpoint"):
        train(str(source), out, teacher)


def test_the_common_mean_of_features_is_taken_out(encoder: str, images: str, tmp_path: Path) -> None:
    """Else all cosines are near 1: directions of features differ little beside what they have in common."""
    means = {}
    for standardise in ("none", "channel"):
        out = tmp_path / standardise
        train(images, out, TeacherChoice(encoder, None), model={"standardise": standardise})
        model: Any = load_tokenizer(out)._model
        assert isinstance(model, KMeansTokenizer)
        pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        directions = model.directions(model.describe(pixels)).flatten(0, 2)
        means[standardise] = float((directions @ directions.t()).mean())
    assert means["channel"] < 0.6 * means["none"]
