"""What masks of published data sets hold, as their authors say: nothing is downloaded, and no file is needed.

Here: Cityscapes (the labels of its scripts), PASCAL VOC (its development kit), CamVid as SegNet distributes it. CamVid
itself comes with label_colors.txt, ADE20K with objectInfo150.txt (`class_table.py`).
"""

from __future__ import annotations

from beit.finetune.masks.class_table import ClassEntry, ClassTable
from beit.finetune.masks.classes import Colour, voc_colours

_CITYSCAPES: tuple[tuple[int, str, Colour], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""Value in labelIds, name and colour, in the order of the trainIds 0 to 18."""
_CITYSCAPES_VALUES = 34
"""labelIds are 0 to 33; those not above are ignored, and so is the licence plate, -1, which a byte holds as 255."""
_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_SEGNET_CAMVID: tuple[tuple[str, Colour], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign_symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)


def cityscapes_label_ids() -> ClassTable:
    """Return what labelIds mean: 19 classes, and the ids that are not evaluated."""
    classes = {value: ClassEntry(name=name, value=value, colour=colour) for value, name, colour in _CITYSCAPES}
    void = [
        ClassEntry(name=f"id {value}", value=value, is_class=False)
        for value in range(_CITYSCAPES_VALUES)
        if value not in classes
    ]
    return ClassTable(origin="Cityscapes' table of labelIds", entries=(*classes.values(), *void), is_published=True)


def cityscapes_train_ids() -> ClassTable:
    """Return what trainIds mean."""
    entries = [
        ClassEntry(name=name, value=train_id, colour=colour) for train_id, (_, name, colour) in enumerate(_CITYSCAPES)
    ]
    return ClassTable(origin="Cityscapes' table of trainIds", entries=tuple(entries), is_published=True)


def pascal_voc() -> ClassTable:
    """Return the classes of PASCAL VOC, the background among them."""
    entries = [
        ClassEntry(name=name, value=value, colour=colour)
        for value, (name, colour) in enumerate(zip(_VOC, voc_colours(len(_VOC)), strict=True))
    ]
    return ClassTable(origin="PASCAL VOC's list of classes", entries=tuple(entries), is_published=True)


def segnet_camvid() -> ClassTable:
    """Return the eleven classes of CamVid as SegNet numbers them; 11 is what has none."""
    entries = [ClassEntry(name=name, value=value, colour=colour) for value, (name, colour) in enumerate(_SEGNET_CAMVID)]
    void = ClassEntry(name="unlabelled", value=len(_SEGNET_CAMVID), is_class=False)
    return ClassTable(origin="SegNet's table of CamVid", entries=(*entries, void), is_published=True)
