"""Damaged masks and damaged files of classes, for `test_fuzz.py`."""

import json

import numpy as np
from PIL import Image

from beit.common.sources.config import SourceConfig
from beit.finetune.masks.class_table import read_class_table
from beit.finetune.masks.coco import open_coco
from beit.finetune.masks.decode import class_id_decoder, read_values
from beit.finetune.masks.settings import MaskDataConfig
from beit.tests.fuzz.mutations import mutate_bytes, mutate_json
from beit.tests.unit.finetune.masks.trees import colours, encoded, ids, palette_image, photo

MASKS = [
    encoded(ids(0, 1, 2, 255)),
    encoded(Image.fromarray(ids(0, 300, 60000, dtype=np.uint16))),
    encoded(palette_image(ids(0, 1, 2), [(0, 0, 0), (9, 9, 9), (5, 5, 5)]), bits=2),
    encoded(Image.fromarray(ids(0, 255)).convert("1")),
    encoded(colours((0, 0, 0), (1, 2, 3))),
    encoded(Image.fromarray(colours((0, 0, 0), (1, 2, 3))).convert("RGBA")),
    encoded(Image.fromarray(ids(0, 7)).convert("LA")),
    encoded(ids(0, 1, 7), "TIFF"),
    encoded(ids(0, 1, 7), "TIFF", compression="tiff_lzw"),
    encoded(colours((0, 0, 0), (1, 2, 3)), "TIFF", compression="tiff_adobe_deflate"),
    encoded(ids(0, 1, 2), "GIF"),
    encoded(ids(0, 1, 2), "BMP"),
]
COCO = {
    "images": [{"id": number, "file_name": f"{number}.jpg", "width": 12, "height": 8} for number in (1, 2, 3)],
    "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog", "color": [1, 2, 3]}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]], "iscrowd": 0},
        {"id": 2, "image_id": "2", "category_id": 7, "segmentation": {"size": [8, 12], "counts": [10, 20, 66]}},
        {"id": 3, "image_id": 3, "category_id": 7, "segmentation": {"size": [8, 12], "counts": ":D6"}, "iscrowd": 1},
    ],
}
PANOPTIC = COCO | {
    "annotations": [
        {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 5, "category_id": 3, "iscrowd": 0}]},
        {"image_id": 2, "file_name": "2.png", "segments_info": [{"id": 7, "category_id": 7}]},
    ]
}
CLASSES = {
    "classes.json": b'["sky", "tree"]',
    "values.json": b'{"0": "sky", "7": "tree", "255": "void"}',
    "numbers.json": b'{"sky": 0, "tree": 4}',
    "objects.json": json.dumps([{"id": 0, "name": "sky", "color": [1, 2, 3]}, {"id": 1, "name": "b"}]).encode(),
    "model.json": b'{"segmentation": {"classes": {"names": ["a", "b"], "colours": [[1, 2, 3], [4, 5, 6]]}}}',
    "class_dict.csv": b"name,r,g,b\nsky,1,2,3\ntree,4,5,6\n",
    "values.csv": b"value;name;color\n0;sky;#010203\n1;tree;4 5 6\n",
    "label_colors.txt": b"64 128 64\tAnimal\n0 0 0\tVoid\n",
    "labelmap.txt": b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\n",
    "names.txt": b"__ignore__\n_background_\ncat\n",
}


def fuzz_masks(folder):
    """Return what damages a mask or a file of classes, and reads it."""
    decoder = class_id_decoder(150)

    def run(rng):
        if rng.random() < 0.5:
            data = mutate_bytes(rng.choice(MASKS), rng)
            found = read_values(data)
            assert found.values.ndim == 2 and found.values.dtype.kind == "u"
            assert decoder.decode(data).dtype == np.uint8
            return
        name = rng.choice(list(CLASSES))
        mutate = mutate_json if name.endswith(".json") and rng.random() < 0.7 else mutate_bytes
        (folder / name).write_bytes(mutate(CLASSES[name], rng))
        table = read_class_table(str(folder / name))
        assert all(isinstance(entry.name, str) and entry.name for entry in table.entries)

    return run


def fuzz_coco(folder):
    """Return what damages a COCO file, opens it and draws its masks."""
    for number in (1, 2, 3):
        (folder / f"{number}.jpg").write_bytes(photo(number))
    (folder / "odd").mkdir()
    for number, segment in ((1, 5), (2, 7)):
        (folder / f"odd/{number}.png").write_bytes(encoded(colours((segment, 0, 0), (0, 0, 0))))

    def run(rng):
        file = folder / "odd.json"
        mutate = mutate_json if rng.random() < 0.7 else mutate_bytes
        file.write_bytes(mutate(json.dumps(rng.choice([COCO, PANOPTIC])).encode(), rng))
        background = rng.choice([None, True, False])
        found = open_coco(str(file), MaskDataConfig(coco_background=background), reading=SourceConfig())
        decoder = class_id_decoder(len(found.classes))
        for shard in found.masks:
            with shard.open() as reader:
                for ref in shard.refs():
                    assert decoder.decode(reader.read(ref)).dtype == np.uint8

    return run
