"""Which labelled images a probe works on; what it measures is in the tests of `common/vit/features.py`."""

import pytest

from beit.common.errors import InputError
from beit.pretrain.config import ProbeConfig
from beit.pretrain.signal.probe import open_probe_data
from beit.tests.image_files import write_folder, write_parquet, write_tar


def test_numbers_and_names_match_only_by_a_file(tmp_path):
    data, test = write_folder(tmp_path / "d", {"cat": 2, "dog": 2}), write_tar(tmp_path / "t.tar", [1, 0, 1])
    with pytest.raises(InputError, match=r"t.tar are numbers \(0, 1\), the model's are names \(cat, dog\)"):
        open_probe_data(ProbeConfig(data=str(data), test=str(test)))
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    found = open_probe_data(ProbeConfig(data=str(data), test=str(test), class_names=str(tmp_path / "names.txt")))
    assert found.test.labels.tolist() == [0, 1, 0]
    assert found.num_classes == 2


def test_classes_are_the_numbers_that_occur(tmp_path):
    found = open_probe_data(ProbeConfig(data=str(write_tar(tmp_path / "t.tar", [17, 1203] * 8))))
    assert found.num_classes == 2
    assert set(found.train.labels.tolist()) == {0, 1}


def test_images_of_several_classes_and_shared_images_are_told(tmp_path, caplog):
    several = write_tar(tmp_path / "t.tar", ["cat|dog", "cat"])
    with pytest.raises(InputError, match=r"several classes \(cat\|dog\)"):
        open_probe_data(ProbeConfig(data=str(several)))
    table = write_parquet(tmp_path / "x.parquet", ["a", "b"], 2)
    open_probe_data(ProbeConfig(data=str(table), test=str(table), label_column="label"))
    assert "holds the same images" in caplog.text
