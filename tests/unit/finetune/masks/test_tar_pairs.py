import io
import pickle
import tarfile

import pytest

from beit.common.errors import InputError
from beit.common.sources.config import SourceConfig
from beit.common.sources.index_build import open_labelled
from beit.common.storage.files import default_cache_dir
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.tar_pairs import looks_like_tars, open_tar_pairs
from beit.tests.file_server import FileServer, serve
from beit.tests.s3_server import serve_s3
from beit.tests.unit.finetune.masks.paired import mask, pairs_of, photo


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs(*numbers, image="jpg", own="seg.png"):
    members = {}
    for number in numbers:
        members |= {f"{number:04d}.{image}": photo(number), f"{number:04d}.{own}": mask(number)}
    return members


def opened(data, image_member=None, **settings):
    return open_tar_pairs(str(data), MaskDataConfig(**settings), reading=SourceConfig(image_member=image_member))


def test_members_of_a_sample_are_image_and_mask(tmp_path):
    write_tar(tmp_path / "0.tar", pairs(1, 2) | {"0003.txt": b"x"})
    write_tar(tmp_path / "1.tar", pairs(4, own="mask.png") | {"0004.cls": b"sky"})
    source = opened(tmp_path)
    assert (source.images.kind, source.images.class_names, source.is_ids, source.classes) == ("tar", None, False, None)
    assert pairs_of(source) == [(f"000{n}.jpg", photo(n), mask(n)) for n in (1, 2, 4)]
    assert pairs_of(pickle.loads(pickle.dumps(source))) == pairs_of(source)
    assert source.notes == source.without_mask == source.without_image == ()
    assert [shard.name for shard in source.masks] == ["0", "1"]


def test_what_has_no_partner_is_told(tmp_path):
    write_tar(tmp_path / "0.tar", pairs(1) | {"0002.jpg": b"i", "0003.seg.png": b"m"})
    source = opened(tmp_path / "0.tar")
    assert source.without_mask == ("0002.jpg",) and source.without_image == ("0003.seg.png",)
    assert len(pairs_of(source)) == 1


def test_members_of_other_names_are_chosen(tmp_path):
    write_tar(tmp_path / "0.tar", pairs(1, image="rgb.png", own="png") | {"0001.depth.png": b"d"})
    with pytest.raises(InputError, match="masks must end in seg.png or mask.png; data.mask_member names another"):
        opened(tmp_path)
    source = opened(tmp_path, image_member="rgb.png", mask_member="png")
    assert pairs_of(source) == [("0001.rgb.png", photo(1), mask(1))]
    assert pairs_of(opened(tmp_path, image_member="rgb.png", mask_member=".gt.png;.PNG")) == pairs_of(source)
    write_tar(tmp_path / "0.tar", pairs(1, own="png"))
    assert pairs_of(opened(tmp_path, mask_member="png")) == [("0001.jpg", photo(1), mask(1))]


def test_several_images_of_a_sample_are_told(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.jpg": photo(1), "a.webp": b"w", "a.seg.png": mask(1)})
    (note,) = opened(tmp_path).notes
    assert "1 samples have several images, of which jpg is taken, not webp; source.image_member" in note


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"i", "a.gt.png": b"m"}, "none of 1 images has a mask: members end in gt.png, jpg.*=gt.png$"),
        ({"images/a.jpg": b"i", "masks/a.png": b"m"}, "seg.png or mask.png; .* an image and its mask share all before"),
        ({"a.seg.png": b"m", "a.txt": b""}, "no images beside masks: members end in seg.png, txt"),
        ({"a.v2.jpg": b"i", "a.v2.seg.png": b"m"}, r"members end in v2.jpg, v2.seg.png.*\(all behind the first dot"),
        ({"a.jpg": b"i", "b.seg.png": b"m"}, "none of 1 images has a mask"),
        ({"a.jpg": b"i", "b.jpg": b"i", "a.seg.png": b"m"}, "do not stand together"),
        ({}, "no images beside masks: members end in nothing"),
    ],
)
def test_tars_without_pairs_are_refused_in_one_line(tmp_path, members, message):
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / "0.tar")
    assert "\n" not in str(caught.value)


def test_a_tar_that_is_cut_is_refused(tmp_path):
    path = write_tar(tmp_path / "0.tar", pairs(1, 2))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"0\.tar"):
        opened(path)


def test_tars_are_walked_once_and_again_where_something_changed(tmp_path, monkeypatch, caplog):
    write_tar(tmp_path / "0.tar", pairs(1) | {"0002.jpg": b"i"})
    first = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("beit.finetune.masks.tar_pairs._walk", lambda *_, **__: pytest.fail("walked again"))
        again = opened(tmp_path)
        assert again.without_mask == first.without_mask and again.images.digest == first.images.digest
        assert pairs_of(again) == pairs_of(first)
    assert opened(tmp_path, mask_member="seg.png").images.digest != first.images.digest
    for kept in default_cache_dir().rglob("*.arrow"):
        kept.write_bytes(b"damaged")
    assert pairs_of(opened(tmp_path)) == pairs_of(first) and "is damaged" in caplog.text
    write_tar(tmp_path / "0.tar", pairs(1, 2))
    assert len(pairs_of(opened(tmp_path))) == 2


def test_tars_of_a_web_server_and_their_signatures(tmp_path):
    data = write_tar(tmp_path / "0.tar", pairs(1, 2)).read_bytes()
    with serve(FileServer({"/d/0.tar": data, "/d/1.tar": data}, signature="sig=secret")) as server:
        source = opened(f"{server.url}/d/{{0..1}}.tar?sig=secret")
        assert looks_like_tars(f"{server.url}/d/0.tar?sig=secret")
        assert [found[1:] for found in pairs_of(source)] == [(photo(n), mask(n)) for n in (1, 2, 1, 2)]
        asked = len(server.requests)
        assert "secret" not in repr(source) and len(opened(f"{server.url}/d/{{0..1}}.tar?sig=secret").masks) == 2
        assert len(server.requests) - asked < asked / 2


def test_tars_of_an_object_store(tmp_path):
    with serve_s3({"pairs/0.tar": write_tar(tmp_path / "0.tar", pairs(1, 2)).read_bytes()}) as bucket:
        assert looks_like_tars(f"{bucket}/pairs")
        assert pairs_of(opened(f"{bucket}/pairs")) == [(f"000{n}.jpg", photo(n), mask(n)) for n in (1, 2)]


def test_what_looks_like_tars(tmp_path):
    assert not looks_like_tars(str(tmp_path)) and looks_like_tars("a/b-{0..3}.TAR")
    write_tar(tmp_path / "deep" / "0.tar", pairs(1))
    assert looks_like_tars(str(tmp_path))


def test_a_file_of_classes_beside_tars_or_above_their_part_is_read(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", pairs(1))
    assert opened(tmp_path / "train").table is None
    (tmp_path / "classes.json").write_text('["sky", "road"]')
    assert opened(tmp_path / "train").table.names == ("sky", "road")
    (tmp_path / "train" / "id2label.json").write_text('{"0": "a", "1": "b"}')
    assert opened(tmp_path / "train" / "*.tar").table.names == ("a", "b")


def test_who_looks_for_labels_in_such_tars_is_told_what_the_masks_are_for(tmp_path):
    data = str(write_tar(tmp_path / "0.tar", pairs(1, 2)))
    index = open_labelled(data, class_names=None, label_column=None)
    with pytest.raises(InputError, match=r"no labels found.*0001.seg.png is a mask, from which beit finetune segm"):
        index.require_labels()
    labelled = pairs(1) | {"0001.cls": b"0"} | pairs(2) | {"0002.cls": b"1"}
    index = open_labelled(str(write_tar(tmp_path / "1.tar", labelled)), class_names=None, label_column=None)
    index.require_labels()
