import itertools
import re
from pathlib import Path

import pytest

import beit
from beit.common.config import load_config
from beit.common.overview.plan.advice import Training, advise
from beit.common.overview.plan.choice import Case, finetune_recipe, pretrain_recipe, store_settings
from beit.pretrain.config import PretrainConfig
from beit.tokenize.config import TokenizeConfig

ROOT = Path(beit.__file__).resolve().parent
COUNTS = [1, 5, 150, 999, 1001, 5000, 10_000, 50_000, 399_999, 400_000, 1_281_167, 14_197_122]
LABELS = [None, 0, 1, 30, 150, 151, 500, 2000, 5000, 10_000, 50_000, 300_000, 1_281_167]
CASES = [
    Case(num_images=images, num_labels=labels, has_gpu=gpu, side_px=side)
    for images, labels, gpu, side in itertools.product(COUNTS, LABELS, (False, True), (None, 32.0, 500.0))
]


def training(**changes):
    usual = {
        "steps": 2000,
        "batch": 32,
        "epochs": 50.0,
        "views": 16,
        "width": 192,
        "is_continued": False,
        "tokenizer": "mini",
    }
    return Training(**{**usual, "tokenize_share": 0.1, **changes})


TRAININGS = [
    training(
        steps=steps, batch=batch, epochs=epochs, views=views, width=width, is_continued=continued, tokenize_share=share
    )
    for steps, batch, epochs, views, width, continued, share in itertools.product(
        (100, 2000, 500_000), (32, 256), (1.0, 50.0), (0, 16), (128, 768), (False, True), (None, 0.9)
    )
]


@pytest.fixture(scope="module")
def everything():
    return {advice for case in CASES for trained in TRAININGS for advice in advise(case, trained)}


def test_every_recipe_that_is_named_is_there(everything):
    named = {pretrain_recipe(case)[0] for case in CASES}
    finetuning = {finetune_recipe(case, patch_size=patch) for case in CASES for patch in (4, 8, 16)}
    for advice in everything:
        words = re.findall(r"--recipe (\w+)", advice.what)
        named |= {word for word in words if word.startswith("continue")}
        finetuning |= {word for word in words if not word.startswith("continue")}
    assert all((ROOT / "pretrain/recipes" / f"{name}.toml").is_file() for name in named)
    assert all((ROOT / "finetune/recipes" / f"{name}.toml").is_file() for name in finetuning)


def test_what_is_quoted_stands_in_the_page_that_is_named(everything):
    assert len(everything) > 12
    for advice in everything:
        page = (ROOT / "docs" / advice.where).read_text().replace(" ± ", " ")
        page = re.sub(r"(?<=\d) (?=\d{3}\b)", ",", page)
        for quoted in re.findall(r"\d[\d,]*\.\d+|\d[\d,]{3,}", advice.why):
            assert quoted in page, f"{quoted} is not in {advice.where}: {advice.why}"


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Case(num_images=150), "beit_mini_patch8_64"),
        (Case(num_images=5000), "beit_tiny_patch8_64"),
        (Case(num_images=1_000_000), "beit_mini_patch8_64"),
        (Case(num_images=50_000, side_px=32), "beit_tiny_patch4_32"),
        (Case(num_images=50_000, side_px=32, has_gpu=True), "beit_small_patch4_32"),
        (Case(num_images=50_000, has_gpu=True), "beit_small_patch16_224"),
        (Case(num_images=1_281_167, has_gpu=True), "beit_base_patch16_224_1k"),
        (Case(num_images=14_197_122, has_gpu=True), "beit_base_patch16_224_22k"),
    ],
)
def test_the_recipe_fits_the_images_and_the_machine(case, name):
    assert pretrain_recipe(case)[0] == name


@pytest.mark.parametrize(
    ("labels", "word"),
    [(30, "knn"), (500, "small_500"), (5000, "linear-probe"), (50_000, "small_50k"), (1_281_167, "published recipe")],
)
def test_what_to_do_with_so_many_labels(labels, word):
    found = [
        advice.what
        for advice in advise(Case(num_images=1000, num_labels=labels), training())
        if advice.topic == "labels"
    ]
    assert len(found) == 1 and word in found[0]


def test_without_labels_nothing_is_said_of_them():
    assert not [a for a in advise(Case(num_images=1000), training(width=768)) if a.topic in ("labels", "adaptation")]


def test_small_batches_are_advised_where_steps_are_few():
    topics = [a.topic for a in advise(Case(num_images=5000), training(steps=500, batch=256))]
    assert "batch" in topics
    assert "batch" not in [a.topic for a in advise(Case(num_images=5000), training(steps=500, batch=32))]
    assert "batch" not in [
        a.topic for a in advise(Case(num_images=10**6), training(steps=500_000, batch=2048, width=768))
    ]


def test_fewer_views_are_advised_where_making_them_is_a_large_part_of_the_time():
    case = Case(num_images=5000)
    assert "--views 4 " in next(a.what for a in advise(case, training(tokenize_share=0.8)) if a.topic == "views")
    assert "views" not in [a.topic for a in advise(case, training(tokenize_share=0.1))]
    assert "views" not in [a.topic for a in advise(case, training(tokenize_share=None))]


def test_views_that_no_pass_reaches_are_too_many():
    found = next(a.what for a in advise(Case(num_images=5000), training(epochs=2.0)) if a.topic == "views")
    assert "--views 2 " in found


@pytest.mark.parametrize("path", sorted((ROOT / "pretrain/recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_header_of_every_recipe_names_its_store(path):
    settings = store_settings(path.read_text())
    if path.stem != "demo":
        made_for = load_config(PretrainConfig, recipe=path, overrides=[], recipe_dir=path.parent).data.made_for
        config = load_config(TokenizeConfig, recipe=None, overrides=settings, recipe_dir=path.parent)
        assert settings and (config.img_size, config.patch_size) == made_for


def test_a_recipe_without_such_a_header_names_no_store():
    assert store_settings('[model]\nsize = "tiny"\n') == []
