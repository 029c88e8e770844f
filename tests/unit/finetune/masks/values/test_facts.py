import numpy as np
import pytest
from PIL import Image

from beit.common.sources.config import SourceConfig
from beit.common.storage.files import default_cache_dir
from beit.finetune.masks.opening import open_parts
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.values import facts as module
from beit.finetune.masks.values.examined import examine
from beit.tests.unit.finetune.masks.trees import encoded, ids, photo, write, write_set


def facts_of(data):
    settings, reading = MaskDataConfig(), SourceConfig()
    return examine(open_parts(str(data), settings, reading=reading).train, settings, name="x", reading=reading).facts


@pytest.fixture
def looks(monkeypatch):
    """Count the masks that are looked at."""
    seen = []
    look = module._mask_facts
    monkeypatch.setattr(module, "_mask_facts", lambda *arguments: seen.append(1) or look(*arguments))
    return seen


def test_values_and_sizes_come_in_order(tmp_path):
    files = {f"images/{n}.jpg": photo(n, size=(12 + n, 8)) for n in range(5)}
    files |= {f"masks/{n}.png": ids(n, 9, size=(12 + n, 8)) for n in range(5)}
    facts = facts_of(write(tmp_path, files))
    assert facts.mask_sizes.tolist() == [[12 + n, 8] for n in range(5)] == facts.image_sizes.tolist()
    assert not facts.differs.any()
    for n in range(5):
        own = facts.flat("values")[facts.owners == n].tolist()
        assert own == [n, 9] and facts.flat("counts")[facts.owners == n].sum() == (12 + n) * 8
    assert facts.pixels_of_values()[0] == 48


def test_masks_are_looked_at_once_and_again_when_they_change(tmp_path, looks):
    first = facts_of(write_set(tmp_path, 4))
    assert len(looks) == 4
    assert facts_of(tmp_path).table.equals(first.table) and len(looks) == 4
    write(tmp_path, {"annotations/2.png": ids(3, 4)})
    assert facts_of(tmp_path).pixels_of_values()[3] == 48 and len(looks) == 8


def test_what_was_found_does_not_depend_on_settings(tmp_path, looks):
    write_set(tmp_path, 3)
    facts_of(tmp_path)
    write(tmp_path, {"classes.json": '["sky", "tree"]'})
    facts_of(tmp_path)
    assert len(looks) == 3


def test_a_stopped_pass_goes_on_where_it_was(tmp_path, monkeypatch, looks):
    monkeypatch.setattr("beit.common.sources.loose_files._FILES_PER_SHARD", 4)
    write_set(tmp_path, 10)
    look = module._look_at_shard

    def stop(images, masks, shard_id, *others):
        if shard_id == 2:
            raise KeyboardInterrupt
        return look(images, masks, shard_id, *others)

    monkeypatch.setattr(module, "_look_at_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        facts_of(tmp_path)
    monkeypatch.setattr(module, "_look_at_shard", look)
    assert len(looks) == 8
    assert len(facts_of(tmp_path)) == 10 and len(looks) == 10


def test_damaged_records_are_made_again(tmp_path, looks):
    first = facts_of(write_set(tmp_path, 3))
    (kept,) = (path for path in default_cache_dir().rglob("000000.arrow"))
    for damage in (b"", b"nonsense", kept.read_bytes()[:-100]):
        kept.write_bytes(damage)
        assert facts_of(tmp_path).table.equals(first.table)
    assert len(looks) == 12


@pytest.mark.parametrize(("orientation", "size"), [(1, [12, 8]), (3, [12, 8]), (6, [8, 12]), (8, [8, 12])])
def test_images_have_the_size_that_they_are_decoded_to(tmp_path, orientation, size):
    files = {"images/a.jpg": photo(size=(12, 8), orientation=orientation), "masks/a.png": ids(0, 1)}
    facts = facts_of(write(tmp_path, files))
    assert facts.image_sizes.tolist() == [size] and facts.stored_sizes.tolist() == [[12, 8]]
    assert facts.is_turned.tolist() == [orientation != 1]


def test_sixteen_bits_are_counted(tmp_path):
    mask = encoded(Image.fromarray(ids(0, 300, 60000, dtype=np.uint16)))
    facts = facts_of(write(tmp_path, {"images/a.jpg": None, "masks/a.png": mask}))
    assert facts.pixels_of_values() == {0: 32, 300: 32, 60000: 32}
