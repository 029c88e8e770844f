import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from beit.cli import beit
from beit.common.errors import InputError
from beit.common.storage.files import sha256_file
from beit.common.tokenizer import load_tokenizer
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder
from beit.common.tokenizers.dalle_files import Part
from beit.common.tokenizers.directory import save_dalle
from beit.tests.dall_e_files import use_small_network, write_pickle
from beit.tests.support import write_images
from beit.tokenize.tokenizer_training.convert import convert_dalle


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_small_network(monkeypatch)
    write_pickle(DalleEncoder(), tmp_path / "published/encoder.pkl")
    write_pickle(DalleDecoder(), tmp_path / "published/decoder.pkl")
    return tmp_path / "published"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_commands_lead_from_a_copied_pickle_to_tokens(published: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out, store = tmp_path / "tokenizers/dall-e", tmp_path / "store"
    converted = runner.invoke(
        beit, ["tokenizer", "convert", str(published / "encoder.pkl"), str(out)], catch_exceptions=False
    )
    assert converted.exit_code == 0
    for part in (load_tokenizer(out).fingerprint, sha256_file(published / "encoder.pkl"), "39,876 parameters"):
        assert part in converted.output
    source = write_images(tmp_path / "images", 4)
    command = ["tokenize", str(source), str(store), "--tokenizer", str(out), "--img-size", "32", "--views", "2"]
    result = runner.invoke(beit, [*command, "--set", "threads=1", "--workers", "1"], catch_exceptions=False)
    assert result.exit_code == 0 and "4 usable" in result.output
    info = json.loads((store / "store.json").read_text())
    assert info["tokenizer"]["fingerprint"] == load_tokenizer(published).fingerprint


def test_one_fingerprint_and_the_same_words_whichever_way(published: Path, tmp_path: Path) -> None:
    convert_dalle(published / "encoder.pkl", tmp_path / "from-file")
    convert_dalle(published, tmp_path / "from-folder")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    bare = load_tokenizer(published)
    for name in ("from-file", "from-folder"):
        tokenizer = load_tokenizer(tmp_path / name)
        assert tokenizer.fingerprint == bare.fingerprint and tokenizer.can_decode
        assert np.array_equal(tokenizer.encode(images), bare.encode(images))
        assert np.array_equal(tokenizer.decode(bare.encode(images)), bare.decode(bare.encode(images)))


def test_a_decoder_that_comes_later_is_added(published: Path, tmp_path: Path) -> None:
    decoder = (published / "decoder.pkl").rename(tmp_path / "decoder.pkl")
    assert "none beside it" in convert_dalle(published / "encoder.pkl", tmp_path / "out")
    before = load_tokenizer(tmp_path / "out")
    assert not before.can_decode
    with pytest.raises(InputError, match="which only pictures need; convert its encoder to"):
        convert_dalle(decoder, tmp_path / "other")
    assert "added the decoder" in convert_dalle(decoder, tmp_path / "out")
    after = load_tokenizer(tmp_path / "out")
    assert after.can_decode and after.fingerprint == before.fingerprint
    with pytest.raises(InputError, match="has a decoder already"):
        convert_dalle(decoder, tmp_path / "out")


def test_an_empty_folder_is_taken_and_anything_else_refused(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert_dalle(published / "encoder.pkl", out)
    assert names(out) == ["config.json", "decoder.safetensors", "model.safetensors"]
    with pytest.raises(InputError, match="is not an empty folder"):
        convert_dalle(published / "encoder.pkl", out)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        convert_dalle(published / "encoder.pkl", tmp_path / "file")


@pytest.mark.parametrize("name", ["encoder.pkl", "decoder.pkl"])
def test_a_wrong_file_leaves_nothing(published: Path, tmp_path: Path, name: str) -> None:
    (published / name).write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(InputError, match=rf"{name} is a web page, not a file that torch wrote"):
        convert_dalle(published / "encoder.pkl", tmp_path / "out")
    assert names(tmp_path) == ["published"]


def test_an_error_while_writing_leaves_nothing(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_after_the_encoder(directory: Path, part: Part, *arguments: Any) -> str:
        if part == "decoder":
            raise OSError(28, "No space left on device")
        return save_dalle(directory, part, *arguments)

    monkeypatch.setattr("beit.tokenize.tokenizer_training.convert.save_dalle", full_after_the_encoder)
    with pytest.raises(OSError, match="No space"):
        convert_dalle(published / "encoder.pkl", tmp_path / "out")
    assert names(tmp_path) == ["published"]


def test_a_missing_file_or_folder_without_encoder_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        convert_dalle(tmp_path / "nothing.pkl", tmp_path / "out")
    (published / "encoder.pkl").unlink()
    with pytest.raises(InputError, match="holds neither"):
        convert_dalle(published, tmp_path / "out")
