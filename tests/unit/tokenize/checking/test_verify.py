import json
import os

import pytest

from beit.common.errors import InputError, ResumableStop
from beit.common.shards.token_store import image_range
from beit.common.storage.files import sha256_file
from beit.common.store import open_store
from beit.tests.tiny_store import BlockSums, StoppedAt, encoded_image, tokenize, write_folder, write_tars
from beit.tokenize.checking.verify import verify_store


@pytest.fixture
def store(tmp_path):
    tokenize(write_tars(tmp_path / "images", (4, 3)), tmp_path / "store")
    return tmp_path / "store"


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def edit_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def forge_hash(store, name):
    """Damage that knows its hash: what is left must be found by content."""
    path = store / "tokens" / name
    kind = "tokens" if name.endswith(".tar") else "samples"
    manifest = store / "tokens/000001-part-1.manifest.json"
    edit_json(manifest, lambda document: document[kind].update(sha256=sha256_file(path), size=path.stat().st_size))
    (store / "index.parquet").unlink()


def test_a_good_store_has_no_problem(store):
    report = verify_store(store)
    assert (report.problems, report.num_shards, report.num_samples) == ([], 2, 7)
    assert "all files are what their manifests say" in report.as_text()


def test_a_packed_store_and_one_without_tokens_have_no_problem(tmp_path):
    source = write_folder(tmp_path / "images", 9)
    tokenize(source, tmp_path / "packed")
    tokenize(source, tmp_path / "plain", views=0)
    assert verify_store(tmp_path / "packed").problems == []
    assert verify_store(tmp_path / "plain").problems == []


@pytest.mark.parametrize("name", ["000001-part-1.tar", "000001-part-1.samples.parquet"])
def test_a_flipped_bit_is_found_in_the_shard_it_is_in(store, name):
    overwrite(store / "tokens" / name, 700, b"\xa5")
    (problem,) = verify_store(store).problems
    assert "shard 000001-part-1" in problem and name in problem and "sha256" in problem


@pytest.mark.parametrize("name", ["000001-part-1.tar", "000001-part-1.samples.parquet"])
def test_a_cut_file_is_found(store, name):
    os.truncate(store / "tokens" / name, 600)
    (problem,) = verify_store(store).problems
    assert name in problem and "600 bytes" in problem


@pytest.mark.parametrize("name", ["000000-part-0.tar", "000000-part-0.manifest.json"])
def test_a_missing_file_is_found(store, name):
    (store / "tokens" / name).unlink()
    (problem,) = verify_store(store).problems
    assert "000000-part-0" in problem


def test_a_zeroed_span_of_an_image_tar_is_found(store, tmp_path):
    overwrite(tmp_path / "images/part-0.tar", 600, bytes(200))
    (problem,) = verify_store(store).problems
    assert "shard 000000-part-0" in problem and "sha256 has changed" in problem


def test_damage_names_the_sample_it_concerns(store, tmp_path):
    opened = open_store(store)
    offset, length = image_range(opened.samples(0), 2)
    overwrite(tmp_path / "images/part-0.tar", offset + length // 2, b"\x55\xaa\x55\xaa")
    place = int(opened.samples(1).view_off[1])
    overwrite(store / "tokens/000001-part-1.tar", place, b"\xff\xff")  # a box outside of the image
    first, second = verify_store(store).problems
    assert "000000-part-0" in first and "damaged samples: 'k002'" in first
    assert "000001-part-1" in second and "damaged samples: 'k005'" in second


def test_a_repacked_image_tar_of_equal_size_is_found(store, tmp_path):
    tar = tmp_path / "images/part-0.tar"
    tar.write_bytes(tar.read_bytes().replace(b"k001", b"k901"))
    (problem,) = verify_store(store).problems
    assert "000000-part-0" in problem


def test_a_token_outside_the_vocabulary_is_found(store):
    manifest = json.loads((store / "tokens/000001-part-1.manifest.json").read_text())
    assert manifest["vocab_size"] == 32
    tar = store / "tokens/000001-part-1.tar"
    overwrite(tar, 512 + 128, b"\x20\x00")  # the first id of the first sample becomes 32
    forge_hash(store, tar.name)
    problems = verify_store(store).problems
    assert any("token id 32, the vocabulary has 32" in problem for problem in problems)


def test_a_table_that_points_elsewhere_is_found(store):
    samples = store / "tokens/000001-part-1.samples.parquet"
    samples.write_bytes((store / "tokens/000000-part-0.samples.parquet").read_bytes())
    forge_hash(store, samples.name)
    assert any("has 4 samples, the shard table says 3" in problem for problem in verify_store(store).problems)


def test_an_index_that_disagrees_is_found(store):
    edit_json(
        store / "tokens/000001-part-1.manifest.json",
        lambda document: document["skipped"].append({"key": "x", "reason": "empty"}),
    )
    assert any("index.parquet does not agree" in problem for problem in verify_store(store).problems)


def test_files_that_do_not_belong_are_named(store):
    (store / "tokens/000001-part-1.tar.tmp.77").write_bytes(b"half")
    (store / "tokens/000009-old.tar").write_bytes(b"old")
    problems = verify_store(store).problems
    assert len(problems) == 2 and all("does not belong" in problem for problem in problems)


def test_a_damaged_manifest_of_a_packed_tar_is_found(tmp_path):
    tokenize(write_folder(tmp_path / "images", 3), tmp_path / "store")
    manifest = tmp_path / "store/images/000000-files.manifest.json"
    edit_json(manifest, lambda document: document["image"].update(sha256="0" * 64))
    (problem,) = verify_store(tmp_path / "store").problems
    assert "000000-files" in problem


def test_an_unfinished_store_says_so_and_checks_what_is_there(tmp_path):
    with pytest.raises(ResumableStop):
        tokenize(write_tars(tmp_path / "images", (3, 4)), tmp_path / "store", tokenizer=StoppedAt(3))
    report = verify_store(tmp_path / "store")
    assert report.num_shards == 1 and report.num_samples == 3
    assert "unfinished" in report.problems[0]


def test_a_folder_that_is_no_store_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="is not a token store"):
        verify_store(tmp_path)


def test_audit_of_a_good_store_agrees_fully(store):
    report = verify_store(store, audit=10, tokenizer=BlockSums())
    assert report.problems == []
    assert report.audit.num_views == 10 and report.audit.agreement == 1.0 and report.audit.same_execution
    assert "100.0 %" in report.as_text()


def test_audit_finds_tokens_of_another_tokenizer(store):
    class Other(BlockSums):
        def encode(self, images):
            return super().encode(images.transpose(0, 2, 1, 3))

    (problem,) = verify_store(store, audit=10, tokenizer=Other()).problems
    assert "tokens agree" in problem


def test_audit_finds_exchanged_images(tmp_path):
    """Same names and sizes, recorded as untouched, other pixels: only looking at pixels tells."""
    source = write_folder(tmp_path / "images", 1)
    tokenize(source, tmp_path / "store")
    tar = tmp_path / "store/images/000000-files.tar"
    data, old = tar.read_bytes(), (source / "000.png").read_bytes()
    new = next(image for n in range(1, 500) if len(image := encoded_image(n, "png")) <= len(old))
    tar.write_bytes(data.replace(old, new + bytes(len(old) - len(new))))
    for manifest in (tmp_path / "store").glob("*/000000-files.manifest.json"):
        edit_json(manifest, lambda document: document["image"].update(sha256=sha256_file(tar)))
    (tmp_path / "store/index.parquet").unlink()
    tokenize(source, tmp_path / "store")
    problems = verify_store(tmp_path / "store", audit=4, tokenizer=BlockSums()).problems
    assert any("not those that were tokenised" in problem for problem in problems)


def test_audit_needs_the_same_tokenizer_and_tokens(store, tmp_path):
    other = BlockSums()
    other.fingerprint = "0" * 64
    with pytest.raises(InputError, match="is not the one the store was made with"):
        verify_store(store, audit=1, tokenizer=other)
    tokenize(tmp_path / "images", tmp_path / "plain", views=0)
    with pytest.raises(InputError, match="this store has none"):
        verify_store(tmp_path / "plain", audit=1)
