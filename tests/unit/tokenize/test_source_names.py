"""Awkward names in every kind of source: every image arrives under a key of its own, and webdataset reads it, too."""

import json
import tempfile
from pathlib import Path

import pytest
import webdataset

from beit.common.errors import InputError
from beit.common.store import open_store
from beit.tests.file_server import FileServer, serve
from beit.tests.tiny_store import encoded_image, tiny_config, tokenize, write_folder, write_members
from beit.tokenize.plan import plan_store

AWKWARD = [
    "a/x.v2.jpg",
    "b/x.v2.jpg",
    "x.v2.png",
    "a/é t&é #1.jpg",
    "日本/写真.jpg",
    "a/" + "n" * 150 + ".jpg",
    "UPPER.JPEG",
    "a/100%.webp",
    "a/it's [1] {2}.jpg",
]


def stock_keys(folder):
    """Keys as stock webdataset reads them, in order."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    return [sample["__key__"] for tar in tars for sample in webdataset.WebDataset(tar, shardshuffle=False)]


def test_awkward_file_names_get_keys_that_keep_them_apart(tmp_path):
    for number, name in enumerate(AWKWARD):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image(number))
    assert tokenize(tmp_path / "photos", tmp_path / "store").num_samples == len(AWKWARD)
    keys = [sample["key"] for sample in open_store(tmp_path / "store")]
    assert len(set(keys)) == len(AWKWARD) and all(key.isascii() and not set("./") & set(key) for key in keys)
    assert stock_keys(tmp_path / "store/images") == stock_keys(tmp_path / "store/tokens") == keys
    samples = webdataset.WebDataset(
        sorted(map(str, (tmp_path / "store/images").glob("*.tar"))), shardshuffle=False
    ).decode()
    assert sorted(sample["json"]["path"] for sample in samples) == sorted(AWKWARD)


def test_awkward_keys_of_foreign_tars_stay_as_they_are(tmp_path):
    names = ["d.ir/a.jpg", "./b.jpg", "é/ü 1.png", "日本/写真.webp", "n" * 200 + ".jpg", "UP.JPG", "a+b=c@d.jpeg"]
    (tmp_path / "tars").mkdir()
    write_members(tmp_path / "tars/x.tar", {name: encoded_image(number) for number, name in enumerate(names)})
    tokenize(tmp_path / "tars", tmp_path / "store")
    keys = [sample["key"] for sample in open_store(tmp_path / "store")]
    assert keys == [name.rpartition(".")[0] for name in names]
    assert stock_keys(tmp_path / "tars") == stock_keys(tmp_path / "store/tokens") == keys


def test_tars_of_one_name_in_two_folders_become_two_shards(tmp_path):
    for number, folder in enumerate("ab"):
        (tmp_path / "tars" / folder).mkdir(parents=True)
        write_members(tmp_path / f"tars/{folder}/0000.tar", {"same key.jpg": encoded_image(number)})
    tokenize(tmp_path / "tars", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert [row.stem for row in store.shards] == ["000000-0000", "000001-0000"]
    assert [row.image_file for row in store.shards] == ["a/0000.tar", "b/0000.tar"]
    assert store[0]["image"].tobytes() != store[1]["image"].tobytes()


def test_images_whose_names_have_more_dots_are_not_left_out_in_silence(tmp_path, caplog):
    write_members(tmp_path / "some.tar", {"a.jpg": encoded_image(0), "b.v2.jpg": encoded_image(1)})
    tokenize(tmp_path / "some.tar", tmp_path / "some")
    assert "1 images left out, such as b.v2.jpg: dots in a name begin its suffix" in caplog.text
    write_members(tmp_path / "all.tar", {"a.v2.jpg": encoded_image(0)})
    with pytest.raises(InputError, match=r"all\.tar holds no images.*image names must have no other dot: rename them"):
        tokenize(tmp_path / "all.tar", tmp_path / "all")


def test_labels_of_every_source_reach_the_store(tmp_path):
    for number, name in enumerate(("cat/1.jpg", "dog/1.jpg", "dog/2.jpg")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(encoded_image(number))
    (tmp_path / "photos/table.csv").write_text("file,class\ncat/1.jpg,rose\ndog/2.jpg,tulip\n", encoding="utf-8")
    members = {"1.jpg": encoded_image(0), "1.cls": b"7", "2.jpg": encoded_image(1), "2.json": b'{"label": 3}'}
    write_members(tmp_path / "n.tar", members | {"3.jpg": encoded_image(2), "3.txt": b"no label"})
    wanted = {
        "photos": (("cat", "dog"), [0, 1, 1]),
        "photos/table.csv": (("rose", "tulip"), [0, 1]),
        "n.tar": (None, [3, 7, None]),
    }
    for number, (source, (names, labels)) in enumerate(wanted.items()):
        tokenize(tmp_path / source, tmp_path / f"store-{number}")
        store = open_store(tmp_path / f"store-{number}")
        assert store.info.class_names == names
        assert sorted((sample["label"] for sample in store), key=lambda label: (label is None, label)) == labels
    origins = webdataset.WebDataset(str(tmp_path / "store-1/images/000000-files.tar"), shardshuffle=False)
    assert {json.loads(origin["json"])["label"] for origin in origins} == {0, 1}


@pytest.mark.parametrize("name", ["ca\x1b[2Jt", "ca\nt"])
def test_a_class_that_no_store_can_hold_leaves_nothing_behind(tmp_path, name):
    write_folder(tmp_path / "images" / name, 2)
    write_folder(tmp_path / "images" / "dog", 2)
    with pytest.raises(InputError, match=r"images holds a text with control characters.*; rename what is called so"):
        tokenize(tmp_path / "images", tmp_path / "store")
    assert not (tmp_path / "store/store.json").exists()
    (tmp_path / "images" / name).rename(tmp_path / "images/cat")
    assert tokenize(tmp_path / "images", tmp_path / "store").num_samples == 4


def test_a_remote_store_may_not_be_made_of_the_local_network():
    files = {"/0.tar": tar_bytes({"0.jpg": b"x"})}
    with serve(FileServer(files)) as server, pytest.raises(InputError, match="of the local network"):
        plan_store(tiny_config(), f"{server.url}/0.tar", "https://example.org/store")


def tar_bytes(members):
    with tempfile.TemporaryDirectory() as folder:
        return write_members(Path(folder) / "0.tar", members).read_bytes()
