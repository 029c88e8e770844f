"""Damaged masks and damaged files of classes, for `test_fuzz.py`."""

import json

import numpy as np
from PIL import Image

from beit.finetune.masks.class_table import read_class_table
from beit.finetune.masks.decode import class_id_decoder, read_values
from beit.tests.fuzz.mutations import mutate_bytes, mutate_json
from beit.tests.unit.finetune.masks.trees import colours, encoded, ids, palette_image

MASKS = [
    encoded(ids(0, 1, 2, 255)),
    encoded(Image.fromarray(ids(0, 300, 60000, dtype=np.uint16))),
    encoded(palette_image(ids(0, 1, 2), [(0, 0, 0), (9, 9, 9), (5, 5, 5)]), bits=2),
    encoded(Image.fromarray(ids(0, 255)).convert("1")),
    encoded(colours((0, 0, 0), (1, 2, 3))),
    encoded(Image.fromarray(colours((0, 0, 0), (1, 2, 3))).convert("RGBA")),
    encoded(Image.fromarray(ids(0, 7)).convert("LA")),
]
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
