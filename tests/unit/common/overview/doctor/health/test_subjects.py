"""What is named is told by its files; what is nothing of the kind is refused, with what could be meant."""

import pytest

from beit.common.errors import InputError
from beit.common.overview.doctor.health.subjects import find_subject
from beit.tests.support import write_tokenizer


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["store.json"], "store"),
        (["index.parquet"], "store"),
        (["config.toml", "config.json", "model.safetensors"], "run"),
        (["config.json"], "encoder"),
        (["model.safetensors"], "encoder"),
        (["encoder/config.json"], "encoder"),
        (["encoder.pkl"], "tokenizer"),
    ],
)
def test_a_kind_is_told_by_its_files(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert find_subject(str(tmp_path)).kind == kind


def test_an_address_is_a_store():
    assert find_subject("s3://bucket/store").kind == "store"


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="gone does not exist; name a store, a run"):
        find_subject(str(tmp_path / "gone"))


def test_what_is_inside_or_around_is_suggested(tmp_path):
    write_tokenizer(tmp_path / "all/mine")
    with pytest.raises(InputError, match=f"in it are {tmp_path}/all/mine"):
        find_subject(str(tmp_path / "all"))
    with pytest.raises(InputError, match=f"name its folder, {tmp_path}/all/mine"):
        find_subject(str(tmp_path / "all/mine/config.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="name the folder of one"):
        find_subject(str(tmp_path / "empty"))
