"""A pointer of Git LFS is called one wherever a file is read, in place of an error about what the file is not."""

from pathlib import Path

import pytest

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.sources.class_names import read_class_names
from beit.common.sources.opening import open_source
from beit.common.storage.documents import read_json
from beit.common.storage.place import place_of
from beit.common.storage.tensor_check import read_safetensors, read_shapes
from beit.common.tokenizers.safe_pickle import read_module_tensors
from beit.finetune.masks.annotated.document import read_coco
from beit.finetune.weights.import_pickles import load_pickle

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def listed(path: Path):
    source = open_source(path)
    return [shard.refs() for shard in source.shards]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.json", read_json),
        ("a.safetensors", read_shapes),
        ("a.safetensors", read_safetensors),
        ("a.pth", load_pickle),
        ("encoder.pkl", lambda path: read_module_tensors(path, ())),
        ("names.txt", lambda path: read_class_names(str(path))),
        ("list.txt", listed),
        ("table.csv", listed),
        ("a.tar", listed),
        ("a.parquet", listed),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_a_pointer_is_called_one(name, read, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(InputError, match="is a pointer of Git LFS"):
        read(tmp_path / name)


def test_an_annotation_file_is_called_one(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.json").write_bytes(POINTER)
    with pytest.raises(InputError, match="is a pointer of Git LFS"):
        read_coco(place_of(str(tmp_path / "a.json")).stat())


@pytest.mark.parametrize("ending", ["dcm", "tif", "heic", "npy"])
def test_a_folder_of_pointers_is_called_one_whatever_their_ending(ending, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.{ending}").write_bytes(POINTER)
    with pytest.raises((InputError, BadSample), match="is a pointer of Git LFS"):
        for shard in open_source(tmp_path).shards:  # where the ending is that of an image, its content tells
            with shard.open() as reader:
                decode_image(reader.read(shard.refs()[0]))
