import json

import pytest

from beit.common.errors import InputError, ResumableStop
from beit.common.store import open_store
from beit.tests.tiny_store import (
    StoppedAt,
    tokenize,
    write_tars,
)


def test_unusable_images_are_skipped_counted_and_named(tmp_path):
    source = write_tars(tmp_path / "images", bad=("k002", "k007"))
    summary = tokenize(source, tmp_path / "store")
    assert summary.num_samples == 10 and dict(summary.skipped) == {"unsupported": 2}
    manifest = json.loads((tmp_path / "store/tokens/000000-part-0.manifest.json").read_text())
    assert manifest["skipped"] == [{"key": "k002", "reason": "unsupported", "share": 1.0}]
    assert "k002" not in {sample["key"] for sample in open_store(tmp_path / "store")}
    assert "2 unsupported" in summary.as_table()


def test_too_many_unusable_images_stop_the_run_and_leave_it_resumable(tmp_path):
    source = write_tars(tmp_path / "images", bad=("k002", "k007"))
    with pytest.raises(InputError, match=r"2 of 12 samples.* bad_sample_budget \(0.1\).*part-0/k002 \(unsupported\)"):
        tokenize(source, tmp_path / "store", bad_sample_budget=0.1)
    assert not (tmp_path / "store/index.parquet").exists()
    assert not list((tmp_path / "store/tokens").glob("*tmp*"))
    assert tokenize(source, tmp_path / "store").num_shards_kept == 1


def test_ranks_share_one_budget(tmp_path):
    source = write_tars(tmp_path / "images", (6, 6), bad=("k002", "k007"))
    with pytest.raises(ResumableStop):
        tokenize(source, tmp_path / "store", world_size=2, tokenizer=StoppedAt(4))
    with pytest.raises(InputError, match=r"2 of 12 images .* \(0.1\) allows 1"):
        tokenize(source, tmp_path / "store", rank=1, world_size=2, bad_sample_budget=0.1)


def test_strict_stops_at_the_first_unusable_image(tmp_path):
    source = write_tars(tmp_path / "images", bad=("k002",))
    with pytest.raises(InputError, match="k002"):
        tokenize(source, tmp_path / "store", strict=True)


def test_no_usable_image_is_an_error(tmp_path):
    source = write_tars(tmp_path / "images", (1,), bad=("k000",))
    with pytest.raises(InputError, match="no image of the source is usable"):
        tokenize(source, tmp_path / "store", bad_sample_budget=0.99)


@pytest.mark.parametrize("keep_bytes", [-1024, 3000])
def test_a_truncated_source_tar_is_refused_before_any_token_is_written(tmp_path, keep_bytes):
    source = write_tars(tmp_path / "images", (3, 3))
    tar = source / "part-1.tar"
    data = tar.read_bytes()
    end = data.rstrip(b"\0")
    tar.write_bytes(end[:keep_bytes] if keep_bytes > 0 else end + b"\0" * (-len(end) % 512))  # no end marker
    with pytest.raises(InputError, match=r"part-1.tar is truncated"):
        tokenize(source, tmp_path / "store")
    assert not list((tmp_path / "store/tokens").glob("*"))
