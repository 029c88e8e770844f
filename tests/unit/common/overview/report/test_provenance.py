"""The way from images to a model: what weights say, what lies beside them, and what is no longer there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.overview.report.documents import find_documents
from beit.common.overview.report.provenance import provenance_section
from beit.common.overview.report.run_files import read_run_files
from beit.common.storage.documents import read_json
from beit.tests.page_parts import PageParts
from beit.tests.report_runs import (
    EARLIER,
    STORE_SHA256,
    TOKENIZER,
    fine_tuned,
    pretraining,
    probed,
    tokenizer,
    write_json,
)

BEFORE = {
    "step": 30,
    "store": "/gone/store",
    "store_sha256": STORE_SHA256,
    "tokenizer": TOKENIZER["name"],
    "tokenizer_fingerprint": TOKENIZER["fingerprint"],
    "views": 4,
}
FITNESS = {
    "format": "beit-tokenizer-report",
    "format_version": 1,
    "tokenizers": [
        {
            "tokenizer": TOKENIZER,
            "verdicts": [{"level": "bad", "title": "words", "text": "few are used", "advice": "train longer"}],
        }
    ],
}


def way(*paths: Path, documents: tuple[Path, ...] = ()) -> str:
    """What the section says, in the order in which it is read."""
    runs = read_run_files(paths)
    return PageParts(f"<main>{''.join(provenance_section(runs, find_documents(runs, documents)).parts)}</main>").text


def stand_in_order(text: str, *words: str) -> bool:
    places = [text.find(word) for word in words]
    return -1 not in places and places == sorted(places)


def test_a_model_knows_its_way_when_all_else_is_gone(tmp_path: Path) -> None:
    run = fine_tuned(tmp_path / "flowers", encoder="/gone/pretrain/encoder", before=BEFORE)
    text = way(run)
    assert stand_in_order(text, "words", "gone/store", "pretrain/encoder", "there/labelled", "flowers", "there/test")
    assert "4 views of each image" in text and "20 labelled images" in text and "not at hand" in text
    assert "is not on this machine" in text and "no store.json" not in text


def test_a_store_at_hand_is_looked_into_and_known_again(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "packed", tmp_path / "store")
    run = pretraining(tmp_path / "run", store=str(tmp_path / "store"))
    text = way(run)
    assert stand_in_order(text, "8 images in loose files", "store", "run") and "changed since" in text
    from beit.common.store import open_store

    found = open_store(tmp_path / "store", check_images=False)
    document = {"store": str(tmp_path / "store"), "store_sha256": found.index_sha256}
    write_json(run / "data.json", document)
    encoder = {"provenance": document | {"step": 30, "total_steps": 30}}
    write_json(run / "encoder/config.json", encoder)
    assert "changed since" not in way(run)


def test_how_images_were_decoded_is_said_where_it_is_not_as_usual(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "packed", tmp_path / "store")
    run = pretraining(tmp_path / "run", store=str(tmp_path / "store"))
    assert "decoded with" not in way(run)
    document = read_json(tmp_path / "store/store.json")
    document["source"] |= {"range": "percentile:1,99", "range_found": [12.0, 900.5], "channels": "grey"}
    write_json(tmp_path / "store/store.json", document)
    text = way(run)
    assert "decoded with range percentile:1,99, channels grey: values from 12 to 900.5 become 0 to 255" in text


def test_what_runs_share_stands_once_and_what_not_says_whose_it_is(tmp_path: Path) -> None:
    parent = pretraining(tmp_path / "pretrain")
    encoder = str(parent / "encoder")
    text = way(
        parent,
        fine_tuned(tmp_path / "tuned", encoder=encoder, before=BEFORE),
        fine_tuned(tmp_path / "random"),
        probed(tmp_path / "probe", encoder=encoder),
    )
    assert text.count("random weights") == 1 and text.count("labelled images, 4 classes") == 1
    assert "pretrain, tuned, probe" in " ".join(text.split()) and "recipe demo" in " ".join(text.split())


def test_an_encoder_named_by_a_relative_path_is_found_beside_the_run(tmp_path: Path) -> None:
    pretraining(tmp_path / "runs/pretrain")
    text = way(fine_tuned(tmp_path / "runs/tuned", encoder="runs/pretrain/encoder", before=BEFORE))
    assert "30 steps of 32 images" in text


def test_weights_that_were_imported_or_went_on_are_told_to_their_beginning(tmp_path: Path) -> None:
    imported = {"imported_from": "/there/dino.pth", "family": "DINO", "sha256": "5" * 64}
    assert "weights of DINO" in way(fine_tuned(tmp_path / "a", encoder="/gone/dino", before=imported))
    init = {
        "encoder": "/gone/second/encoder",
        "sha256": "6" * 64,
        "provenance": BEFORE
        | {
            "init": {
                "encoder": "/gone/first",
                "provenance": imported,
            }
        },
    }
    text = way(fine_tuned(tmp_path / "b", encoder="/gone/third/encoder", before=BEFORE | {"init": init}))
    assert stand_in_order(text, "gone/first", "second/encoder", "third/encoder")


def test_verdicts_on_the_tokenizer_come_from_documents_beside_it_or_named(tmp_path: Path) -> None:
    run = pretraining(tmp_path / "run")
    assert "not measured" in way(run)
    write_json(tmp_path / "elsewhere/fitness.json", FITNESS)
    assert "Few are used." in way(run, documents=(tmp_path / "elsewhere/fitness.json",))
    write_json(tmp_path / "fitness.json", FITNESS)
    text = way(run)
    assert "Few are used." in text and "Train longer." in text and "not measured" not in text


def test_a_tokenizer_beside_the_run_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    tokenizer(tmp_path / "any name")
    assert "distilled from a teacher (VQ-KD), 16 words" in way(pretraining(tmp_path / "run"))
    assert stand_in_order(way(tmp_path / "any name"), "there/images", "runs/dino", "any name")


@pytest.mark.parametrize("content", ['{"format": "other"}', "[]", "{}"])
def test_other_documents_are_refused_where_they_are_named_and_passed_over_where_not(
    content: str, tmp_path: Path
) -> None:
    run, file = pretraining(tmp_path / "run"), tmp_path / "beit-tokenizer-report.json"
    file.write_text(content)
    assert way(run)
    with pytest.raises(InputError, match="no document of a report"):
        way(run, documents=(file,))


def test_a_teacher_whose_width_stands_in_the_tokenizer_is_described_by_it(tmp_path: Path) -> None:
    run = tokenizer(tmp_path / "words", "kmeans")
    document = json.loads((run / "config.json").read_text())
    document["training"]["teacher"] = {"name": "runs/e", "block": 1, "fingerprint": "7" * 64}
    document["model"]["vit"] = {"embed_dim": 64, "img_size": 32}
    write_json(run / "config.json", document)
    assert "64 features per square of block 1, at 32 px" in way(run)
    del document["model"]["vit"]
    write_json(run / "config.json", document)
    assert "features per square of block 1" in way(run) and "None" not in way(run)
