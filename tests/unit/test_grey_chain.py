"""Grey from the images to the predictions: one channel everywhere, one meaning where a model sees another number."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.images.channels import pixels_of
from beit.common.sources.config import SourceConfig
from beit.common.store import open_store
from beit.common.tokenizer import load_tokenizer
from beit.common.views import render_view
from beit.common.vit.channels import fit_channels
from beit.common.vit.config import Normalization
from beit.common.vit.description import read_encoder_config
from beit.finetune.attention import attention_sheet
from beit.finetune.neighbours import neighbour_sheet
from beit.finetune.prediction.loading import load_model
from beit.finetune.prediction.predict import predict, predict_to_file
from beit.finetune.probe.run import run_probe
from beit.finetune.train import run as finetune
from beit.finetune.train_segmentation import run as segment
from beit.pretrain.train import run as pretrain
from beit.tests.continued import DINO, PIXELS, save_random, settings
from beit.tests.support import files_of, write_images, write_tokenizer
from beit.tests.unit.finetune.colours import finetune_config
from beit.tests.unit.finetune.segmentation import scenes
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize

SHAPE = {"size": "tiny", "embed_dim": 24, "depth": 2, "num_heads": 2}
GREY = SourceConfig(channels="grey")


def tokenize(root, name, **changes):
    config = TokenizeConfig(
        **{"tokenizer": str(root / "tokenizer"), "views": 2, "img_size": 16, "patch_size": 4} | changes,
        shard_size=16,
        threads=1,
        workers=1,
    )
    run_tokenize(config, str(root / "images"), root / name)
    return open_store(root / name)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("grey")
    write_images(root / "images", 40)
    write_images(root / "train", 16, classes=("dark", "light"))
    write_images(root / "val", 8, classes=("dark", "light"))
    write_tokenizer(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def store(root):
    return tokenize(root, "store", source=GREY)


@pytest.fixture(scope="module")
def pretrained(root, store):
    pretrain(settings(model=SHAPE), store=store.location, run_dir=root / "pretrained")
    return root / "pretrained"


@pytest.fixture(scope="module")
def finetuned(root, pretrained):
    overrides = [f"encoder={pretrained}", f"data.val={root / 'val'}", "train.steps=4", *OF_ENCODER]
    finetune(
        finetune_config(*overrides, "augment.rand_augment=rand-m9-mstd0.5-inc1", "mix.prob=1"),
        data=str(root / "train"),
        run_dir=root / "ft",
    )
    return root / "ft"


OF_ENCODER = ("model.embed_dim=none", "model.depth=none", "model.num_heads=none", "augment.erase_prob=0.5")


def test_a_grey_store_holds_views_of_one_channel_and_the_words_of_the_same_grey_in_three(root, store):
    assert (store.info.source.channels, store.info.num_channels) == ("grey", 1)
    verify_store(store.location, audit=4)
    sample = store[3]
    assert sample["image"].mode == "L"
    view = render_view(sample["image"], sample["views"][0], img_size=32, resample="lanczos", check_crop=True)
    tokenizer = load_tokenizer(root / "tokenizer")
    for channels in (1, 3):
        pixels = np.repeat(view, channels, axis=2)[None]
        assert np.array_equal(tokenizer.encode(pixels)[0].numpy(), sample["token_ids"][0])


def test_a_setting_that_is_not_given_leaves_the_store_as_it_was(root):
    usual = tokenize(root, "usual")
    assert usual.info.num_channels == 3 and usual[0]["image"].mode == "RGB"
    assert (
        usual.info.settings_sha256()
        == replace(usual.info, source=replace(usual.info.source, channels="rgb")).settings_sha256()
    )


@pytest.mark.parametrize("packing", [{"materialize": True}, {"short_side": 18}])
def test_images_that_are_encoded_again_stay_grey(root, packing):
    made = tokenize(root, f"packed-{next(iter(packing))}", source=GREY, **packing)
    verify_store(made.location)
    assert made.info.num_channels == 1 and made[0]["image"].mode == "L"


def test_the_encoder_of_a_grey_store_sees_one_channel(pretrained):
    stored = read_encoder_config(pretrained)
    assert stored.architecture.in_chans == 1 and len(stored.normalization.mean) == 1
    assert read_encoder_state(pretrained / "encoder")["patch_embed.proj.weight"].shape == (24, 1, 4, 4)
    encoder = load_encoder(pretrained)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    assert encoder.transform(photo).shape == (1, 16, 16)
    assert torch.equal(encoder.transform(photo), encoder.transform(photo.convert("L")))


def test_a_run_goes_on_and_refuses_other_channels(root, store, pretrained):
    before = files_of(pretrained / "encoder")
    pretrain(settings(model=SHAPE), store=store.location, run_dir=pretrained)
    assert files_of(pretrained / "encoder") == before
    with pytest.raises(InputError) as error:
        pretrain(settings(model=SHAPE), store=tokenize(root, "usual").location, run_dir=pretrained)
    assert "\n" not in str(error.value) and "model.in_chans" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked_pixels", "all_tokens"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_other_objectives_and_three_channels_take_grey_stores(root, store, kind, in_chans, caplog):
    run = root / f"{kind}-{in_chans}"
    config = settings(
        model=SHAPE | {"in_chans": in_chans},
        objective={"kind": kind},
        mask={} if kind == "masked_pixels" else {"mode": "none"},
        held_out={"pictures": 2, "train_images": 0},
        train={"steps": 2},
    )
    with caplog.at_level("INFO", logger="beit"):
        pretrain(config, store=store.location, run_dir=run)
    assert read_encoder_config(run).architecture.in_chans == in_chans
    assert ("grey stands in all of them" in caplog.text) == (in_chans == 3)


@pytest.mark.slow
def test_an_rgb_store_makes_a_grey_encoder_where_that_is_asked_for(root, caplog):
    store = tokenize(root, "usual")
    with caplog.at_level("INFO", logger="beit"):
        pretrain(
            settings(model=SHAPE | {"in_chans": 1}, train={"steps": 2}), store=store.location, run_dir=root / "luma"
        )
    assert read_encoder_config(root / "luma").architecture.in_chans == 1 and "their luma" in caplog.text


@pytest.mark.slow
def test_words_computed_while_training_are_of_grey_too(root):
    bare = tokenize(root, "bare", source=GREY, tokenizer=TokenizeConfig().tokenizer, views=0)
    config = settings(model=SHAPE, tokenizer={"online": str(root / "tokenizer")}, train={"steps": 2})
    pretrain(config, store=bare.location, run_dir=root / "online")
    assert read_encoder_config(root / "online").architecture.in_chans == 1


@pytest.mark.slow
@pytest.mark.parametrize("in_chans", [None, 1])
def test_an_rgb_encoder_is_continued_on_grey_as_it_is_or_made_grey(root, store, in_chans):
    encoder = root / f"rgb-{in_chans}"
    save_random(encoder, replace(DINO, img_size=16))
    config = settings(encoder, model={} if in_chans is None else {"in_chans": 1}, train={"steps": 2})
    run = root / f"continued-{in_chans}"
    pretrain(config, store=store.location, run_dir=run)
    stored = read_encoder_config(run)
    assert stored.architecture.in_chans == (in_chans or 3)
    assert len(stored.normalization.mean) == (in_chans or 3)
    if in_chans is None:
        assert stored.normalization == Normalization(*PIXELS)
    pretrain(config, store=store.location, run_dir=run)  # goes on, or is finished, without a complaint


def test_a_classifier_of_grey_says_the_same_of_colours_and_of_their_luma(root, finetuned, caplog):
    assert read_encoder_config(finetuned).architecture.in_chans == 1
    with caplog.at_level("INFO", logger="beit"):  # grey, as it was trained
        predict_to_file(finetuned, str(root / "val"), out=root / "grey.csv", stdout=None)
        assert "the images are" not in caplog.text
        settings = SourceConfig(channels="rgb")
        predict_to_file(finetuned, str(root / "val"), out=root / "colours.csv", stdout=None, settings=settings)
    assert "the images are RGB, and the model sees one channel" in caplog.text
    assert (root / "colours.csv").read_text() == (root / "grey.csv").read_text()
    rows = list(csv.DictReader((root / "grey.csv").open()))
    model = load_model(finetuned)
    found = model.predict([root / "val" / row["key"] for row in rows])
    assert [one.label for one in found] == [row["label"] for row in rows]
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    assert torch.equal(model.probabilities(images), model.probabilities(fit_channels(images, 3).clone()))
    with pytest.raises(ValueError, match=r"must be \(B, 1, S, S\)"):
        model.probabilities(torch.zeros(2, 3, 16, 16))


@pytest.mark.slow
def test_an_rgb_encoder_becomes_grey_in_a_fine_tuning(root, tmp_path):
    encoder = tmp_path / "rgb"
    save_random(encoder, replace(DINO, img_size=16))
    overrides = [f"encoder={encoder}", *OF_ENCODER, "train.steps=2"]
    for name, more, channels in (("as-it-is", (), 3), ("made-grey", ("model.in_chans=1",), 1)):
        config = finetune_config(*overrides, "source.channels=grey", *more)
        finetune(config, data=str(root / "train"), run_dir=tmp_path / name)
        assert read_encoder_config(tmp_path / name).architecture.in_chans == channels
        assert len(list(predict(tmp_path / name, str(root / "val"), settings=GREY))) > 0


@pytest.mark.slow
def test_random_weights_see_as_many_channels_as_the_images(root, tmp_path):
    finetune(
        finetune_config("source.channels=grey", "train.steps=2"), data=str(root / "train"), run_dir=tmp_path / "run"
    )
    stored = read_encoder_config(tmp_path / "run")
    assert stored.architecture.in_chans == 1 and stored.normalization == Normalization((0.5,), (0.5,))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["linear-probe", "knn"])
def test_features_of_grey_are_probed(root, pretrained, tmp_path, task):
    config = finetune_config(
        f"encoder={pretrained}", f"data.val={root / 'val'}", *OF_ENCODER[:3], "source.channels=grey"
    )
    run_probe(task, config, data=str(root / "train"), run_dir=tmp_path / "run")
    result = json.loads((tmp_path / f"run/{task}.json").read_text())
    assert result["num_images"] == 8


def test_pictures_of_grey_are_drawn(root, pretrained):
    found = attention_sheet(pretrained, str(root / "val"), num_images=2, block=None, queries=())
    assert found.image.mode == "RGB"
    assert neighbour_sheet(pretrained, str(root / "val"), num_rows=2, num_images=8).image.mode == "RGB"


@pytest.mark.slow
def test_scenes_of_grey_are_segmented(root, pretrained, tmp_path):
    data = scenes.write_scenes(tmp_path / "scenes", 6)
    overrides = [f"encoder={pretrained}", "model.embed_dim=none", "model.depth=none", "model.num_heads=none"]
    overrides += ["train.steps=2", "source.channels=grey", f"data.val={data}", "augment.photometric=true"]
    segment(scenes.config(*overrides, "head.kind=linear"), data=str(data), run_dir=tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert model.config.in_chans == 1
    with Image.open(data / "images/000.png") as image:
        found, same = model.predict(image), model.predict(image.convert("L"))
    assert np.array_equal(found.ids, same.ids) and found.ids.shape == (32, 40)


def test_pixels_of_a_decoded_image_always_have_three_axes():
    assert pixels_of(Image.new("L", (4, 3))).shape == (3, 4, 1)
