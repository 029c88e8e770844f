import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.store import open_store
from beit.tests.tiny_store import encoded_image, tiny_config, tokenize, write_folder, write_tars
from beit.tokenize.plan import plan_store


def sorted_by_class(tmp_path, count=30):
    for name in ("ape", "bee"):
        write_folder(tmp_path / "images" / name, count)
    return tmp_path / "images"


def test_packing_mixes_classes_and_gives_every_image_one_place(tmp_path):
    plan = plan_store(tiny_config(shard_size=20), str(sorted_by_class(tmp_path)), str(tmp_path / "store"))
    groups = plan.catalogue.groups
    assert [len(group) for group in groups] == [20, 20, 20]
    assert sorted(np.concatenate(groups)) == list(range(60))
    for group in groups:
        labels = [plan.catalogue.refs[position].label for position in group]
        assert 3 < sum(labels) < 17  # two classes, mixed


def test_packing_order_depends_on_the_seed_alone(tmp_path):
    source = str(sorted_by_class(tmp_path, 10))
    plans = [plan_store(tiny_config(seed=seed), source, str(tmp_path / "store")) for seed in (0, 0, 1)]
    orders = [np.concatenate(plan.catalogue.groups).tolist() for plan in plans]
    assert orders[0] == orders[1] != orders[2]


def test_keep_order_keeps_the_order(tmp_path):
    plan = plan_store(tiny_config(keep_order=True), str(sorted_by_class(tmp_path, 5)), str(tmp_path / "store"))
    assert np.concatenate(plan.catalogue.groups).tolist() == list(range(10))


def test_shards_are_alike_in_size_and_bounded_in_bytes(tmp_path):
    source = write_folder(tmp_path / "images", 21)
    plan = plan_store(tiny_config(shard_size=20), str(source), str(tmp_path / "store"))
    assert [len(group) for group in plan.catalogue.groups] == [11, 10]
    most = len(encoded_image(0, "png")) * 4
    plan = plan_store(tiny_config(shard_size=20, shard_bytes=most), str(source), str(tmp_path / "store"))
    lengths = [[plan.catalogue.refs[position].length for position in group] for group in plan.catalogue.groups]
    assert all(sum(group) <= most for group in lengths) and sum(map(len, lengths)) == 21
    plan = plan_store(tiny_config(shard_bytes=1), str(source), str(tmp_path / "store"))
    assert len(plan.shards) == 21  # an image larger than the limit gets a tar of its own


def test_tars_are_referenced_relative_to_the_store(tmp_path):
    plan = plan_store(tiny_config(), str(write_tars(tmp_path / "images")), str(tmp_path / "stores/one"))
    assert plan.catalogue is None and plan.packing is None
    assert plan.image_root == "../../images"
    assert [shard.image_file for shard in plan.shards] == ["part-0.tar", "part-1.tar"]
    assert [shard.stem for shard in plan.shards] == ["000000-part-0", "000001-part-1"]


def test_tars_below_other_folders_keep_their_path(tmp_path):
    for name in "ab":
        write_tars(tmp_path / "images" / name, (1,))
    plan = plan_store(tiny_config(), str(tmp_path / "images"), str(tmp_path / "store"))
    assert [shard.image_file for shard in plan.shards] == ["a/part-0.tar", "b/part-0.tar"]


def test_a_store_beside_the_tars_of_its_source_is_fine(tmp_path):
    source = write_tars(tmp_path / "images", (2,))
    assert plan_store(tiny_config(), str(source / "*.tar"), str(source / "store")).image_root == ".."


def test_the_digest_follows_names_and_sizes_not_times(tmp_path):
    source = write_folder(tmp_path / "images", 3)
    digests = [plan_store(tiny_config(), str(source), str(tmp_path / "store")).source_info.digest]
    (source / "000.png").touch()
    digests.append(plan_store(tiny_config(), str(source), str(tmp_path / "store")).source_info.digest)
    (source / "000.png").rename(source / "zzz.png")
    digests.append(plan_store(tiny_config(), str(source), str(tmp_path / "store")).source_info.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_missing_source_is_bad_input(tmp_path):
    with pytest.raises(InputError):
        plan_store(tiny_config(), str(tmp_path / "nothing"), str(tmp_path / "store"))


@pytest.mark.parametrize("changes", [{}, {"short_side": 32}])
def test_the_images_of_a_store_keep_the_names_of_their_classes(tmp_path, changes):
    for name in ("rose", "tulip"):
        write_folder(tmp_path / "images" / name, 3)
    tokenize(tmp_path / "images", tmp_path / "first")
    tokenize(tmp_path / "first/images", tmp_path / "second", views=1, **changes)
    first, second = (open_store(tmp_path / name) for name in ("first", "second"))
    assert second.info.class_names == first.info.class_names == ("rose", "tulip")
    labels = [{sample["key"]: sample["label"] for sample in store} for store in (first, second)]
    assert labels[0] == labels[1] and set(labels[1].values()) == {0, 1}
