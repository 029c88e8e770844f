import json

import pytest

from beit.common.errors import InputError
from beit.finetune.masks.class_table import is_void, read_class_table

CAMVID = "64 128 64\tAnimal\n192 0 128\t\tArchway\n0 0 0\t\tVoid\n128 128 0       Tree of\n"
CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\nred car:1,2,3:door,wheel:\n"


def read(tmp_path, text, name="classes.json"):
    file = tmp_path / name
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    return read_class_table(str(file))


def facts(table):
    return [(entry.name, entry.value, entry.colour, entry.is_class) for entry in table.entries]


def test_a_list_of_names_gives_their_order(tmp_path):
    table = read(tmp_path, ["sky", "tree"])
    assert facts(table) == [("sky", None, None, True), ("tree", None, None, True)]
    assert table.names == ("sky", "tree") and not table.has_colours


def test_an_object_gives_values_and_those_called_void_are_none(tmp_path):
    table = read(tmp_path, {"0": "sky", "7": "tree", "255": "void"})
    assert facts(table) == [("sky", 0, None, True), ("tree", 7, None, True), ("void", 255, None, False)]


def test_the_config_of_a_model_is_a_file_of_classes(tmp_path):
    assert read(tmp_path, {"id2label": {"0": "sky", "1": "tree"}}).names == ("sky", "tree")
    assert read(tmp_path, {"class_names": ["sky", "tree"]}).names == ("sky", "tree")
    ours = {"segmentation": {"classes": {"names": ["sky", "tree"], "colours": [[1, 2, 3], [4, 5, 6]]}}}
    assert facts(read(tmp_path, ours)) == [("sky", 0, (1, 2, 3), True), ("tree", 1, (4, 5, 6), True)]


@pytest.mark.parametrize(
    "content",
    [
        {"sky": 0, "tree": 4},
        [{"id": 0, "name": "sky"}, {"id": 4, "name": "tree"}],
        {"categories": [{"value": 0, "name": "sky"}, {"value": 4, "name": "tree"}]},
        {"names": {"0": "sky", "4": "tree"}},
        {"labels": 0, "names": 4},
        [{"label": 0, "name": "sky"}, {"label": 4, "name": "tree"}],
        [{"category_id": 0, "name": "sky"}, {"category_id": 4, "name": "tree"}],
    ],
)
def test_names_and_values_the_other_way_round(tmp_path, content):
    assert [entry.value for entry in read(tmp_path, content).entries] == [0, 4]


def test_objects_and_tables_may_say_colours(tmp_path):
    expected = [("sky", 0, (1, 2, 3), True), ("tree", 1, (64, 0, 128), True)]
    listed = [{"id": 0, "name": "sky", "color": [1, 2, 3]}, {"id": 1, "name": "tree", "color": "#400080"}]
    assert facts(read(tmp_path, listed)) == expected
    assert facts(read(tmp_path, "id,name,r,g,b\n0,sky,1,2,3\n1,tree,64,0,128\n", "a.csv")) == expected
    assert facts(read(tmp_path, "id;name;color\n0;sky;1 2 3\n1;tree;#400080\n", "a.csv")) == expected
    assert [entry.colour for entry in read(tmp_path, {"sky": [1, 2, 3], "tree": [64, 0, 128]}).entries] == [
        (1, 2, 3),
        (64, 0, 128),
    ]


def test_label_colors_of_camvid(tmp_path):
    assert facts(read(tmp_path, CAMVID, "label_colors.txt")) == [
        ("Animal", None, (64, 128, 64), True),
        ("Archway", None, (192, 0, 128), True),
        ("Void", None, (0, 0, 0), False),
        ("Tree of", None, (128, 128, 0), True),
    ]


def test_labelmap_of_cvat(tmp_path):
    table = read(tmp_path, CVAT, "labelmap.txt")
    assert [(entry.name, entry.colour) for entry in table.entries] == [
        ("background", (0, 0, 0)),
        ("cat", (250, 50, 83)),
        ("red car", (1, 2, 3)),
    ]
    assert table.has_colours


def test_class_dict_of_segnet_and_classes_of_roboflow(tmp_path):
    table = read(tmp_path, "name,r,g,b\nAnimal,64,128,64\nVoid,0,0,0\n", "class_dict.csv")
    assert facts(table) == [("Animal", None, (64, 128, 64), True), ("Void", None, (0, 0, 0), False)]
    table = read(tmp_path, "Pixel Value, Class\n0, background\n1, Left Lane\n", "_classes.csv")
    assert facts(table) == [("background", 0, None, True), ("Left Lane", 1, None, True)]


def test_object_info_of_ade20k(tmp_path):
    text = (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.16\t11664\t1172\t1\twall\n2\t0.11\t6046\t612\t1\tbuilding, edifice\n"
    )
    table = read(tmp_path, text, "objectInfo150.txt")
    assert [(entry.name, entry.value) for entry in table.entries] == [("wall", 1), ("building, edifice", 2)]


def test_one_name_per_line(tmp_path):
    assert [(entry.name, entry.value) for entry in read(tmp_path, "sky\nbig tree\n", "classes.txt").entries] == [
        ("sky", 0),
        ("big tree", 1),
    ]


def test_class_names_of_labelme_count_from_the_second_line(tmp_path):
    table = read(tmp_path, "__ignore__\n_background_\ncat\n", "class_names.txt")
    assert [(entry.name, entry.value) for entry in table.entries] == [("_background_", 0), ("cat", 1)]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("label,name\n1,sky\n2,tree\n", [("sky", 1, None), ("tree", 2, None)]),
        ("label,name\nsky,Sky\ntree,Tree\n", [("Sky", None, None), ("Tree", None, None)]),
        ("name\nsky\ntree\n", [("sky", None, None), ("tree", None, None)]),
        ("sky, 1,2,3\ntree, 4,5,6\n", [("sky", None, (1, 2, 3)), ("tree", None, (4, 5, 6))]),
    ],
)
def test_tables_of_few_columns(tmp_path, content, facts):
    (tmp_path / "classes.csv").write_text(content)
    entries = read_class_table(str(tmp_path / "classes.csv")).entries
    assert [(entry.name, entry.value, entry.colour) for entry in entries] == facts


def test_yaml_is_refused(tmp_path):
    (tmp_path / "data.yaml").write_text("names:\n  0: sky\n  1: tree\n")
    with pytest.raises(InputError, match="is YAML; it must be a JSON list"):
        read_class_table(str(tmp_path / "data.yaml"))


@pytest.mark.parametrize("name", ["void", "Void", "VOID", "unlabelled", "Unlabeled", "ignore", "don't care"])
def test_names_that_mean_no_class(name):
    assert is_void(name)


@pytest.mark.parametrize("name", ["background", "avoid", "sky", "other"])
def test_names_that_are_classes(name):
    assert not is_void(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "names no classes"),
        ("{", "not JSON"),
        ('["sky", "sky"]', "the name sky twice"),
        ('["sky", 3]', "calls a class 3"),
        ('{"0": "sky", "x": "tree"}', "'x', which is no number"),
        ('[{"id": 0, "name": "sky"}, {"name": "tree"}]', "some classes a value and others none"),
        ('[{"id": 0, "name": "sky"}, {"id": 0, "name": "tree"}]', "the value 0 twice"),
        ('[{"id": 70000, "name": "sky"}, {"id": 0, "name": "tree"}]', "70000; values of masks are 0 to 65535"),
        ("name,r,g,b\nsky,1,2,300\n", "row 1 has the colour"),
        ("name,r,g,b\nsky,1,2,3\ntree,1,2,3\n", "the colour .1, 2, 3. twice"),
        ("value,name\nx,sky\n", "row 1 has the value 'x'"),
        ("value,name\n1,\n", "calls a class ''"),
    ],
)
def test_files_that_say_nothing_certain_are_refused(tmp_path, content, words):
    with pytest.raises(InputError, match=words) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.json"):
        read_class_table(str(tmp_path / "nowhere.json"))
