import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beit.common.errors import InputError
from beit.common.shards.schema import TokenizerInfo
from beit.common.storage import download, remote_place
from beit.common.storage.files import sha256_file
from beit.common.tokenizer import load_store_tokenizer, load_tokenizer
from beit.common.tokenizers import dalle_cache
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder
from beit.common.tokenizers.dalle_cache import MIRRORS_VARIABLE, has_decoder, prepare_dalle
from beit.tests.dall_e_files import use_small_network, write_pickle
from beit.tests.file_server import FileServer, serve
from beit.tests.impatience import hurry

USED = ["config.json", "decoder.safetensors", "model.safetensors"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, far from any network."""
    use_small_network(monkeypatch)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", MIRRORS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", "http://127.0.0.1:9/dall-e")
    hurry(monkeypatch)
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dall-e"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    write_pickle(DalleEncoder(), tmp_path / "published/encoder.pkl")
    write_pickle(DalleDecoder(), tmp_path / "published/decoder.pkl", zip_format=False)
    return tmp_path / "published"


def files_of(folder: Path) -> dict[str, bytes]:
    return {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}


def put(published: Path, folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes((published / name).read_bytes())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def settings(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_a_store_of_dalle_downloads_nothing_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path))
    info = TokenizerInfo(name="dall-e", fingerprint="0" * 64, vocab_size=8192, downsampling=8)
    for need_decoder, part in ((False, "encoder"), (True, "decoder")):
        with pytest.raises(InputError, match=f"whose {part} is not on this machine .*say --tokenizer dall-e"):
            load_store_tokenizer(info, need_decoder=need_decoder)


def test_first_use_downloads_converts_and_records(
    folder: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(FileServer(files_of(published))) as server:
        monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", server.url)
        tokenizer = load_tokenizer("dall-e")
        assert server.paths == [f"/{part}.pkl" for part in ("encoder", "decoder") for _ in ("look", "fetch")]
    assert names(folder) == sorted([*USED, "encoder.pkl", "decoder.pkl"])
    for part in ("encoder", "decoder"):
        assert settings(folder)["sources"][part] == {
            "name": f"{part}.pkl",
            "size": (published / f"{part}.pkl").stat().st_size,
            "sha256": sha256_file(published / f"{part}.pkl"),
            "url": f"{server.url}/{part}.pkl",
        }
    # Now without network, and even without the pickles.
    (folder / "encoder.pkl").unlink()
    again = load_tokenizer("dall-e")
    assert again.fingerprint == tokenizer.fingerprint == load_tokenizer(published).fingerprint
    assert again.decode(np.zeros((1, 2, 2), np.int64)).shape == (1, 16, 16, 3)


def test_without_network_one_line_says_what_to_do(folder: Path) -> None:
    with pytest.raises(InputError) as error:
        load_tokenizer("dall-e")
    message = str(error.value)
    assert "\n" not in message
    for part in (str(folder), "Connection refused", "put encoder.pkl there by hand", MIRRORS_VARIABLE, "mini"):
        assert part in message
    assert names(folder) == []


def test_mirrors_are_asked_after_the_official_address(
    folder: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(FileServer(files_of(published))) as server:
        monkeypatch.setenv(MIRRORS_VARIABLE, f"{server.url}/nothing/ {server.url}/")
        load_tokenizer("dall-e")
    assert settings(folder)["sources"]["encoder"]["url"] == f"{server.url}/encoder.pkl"


@pytest.mark.parametrize("mirror", ["file:///etc", "mirror.example/dall-e"])
def test_mirrors_must_be_web_addresses(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRRORS_VARIABLE, mirror)
    with pytest.raises(InputError, match=rf"{MIRRORS_VARIABLE} \({mirror}\) must list http"):
        load_tokenizer("dall-e")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"--2021-05-01-- https://cdn...\n", b"PK\x03\x04 cut"])
def test_a_server_that_gives_something_else_leaves_nothing(
    folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(FileServer({"/encoder.pkl": content})) as server:
        monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", server.url)
        with pytest.raises(InputError, match="what it gave is not the file"):
            load_tokenizer("dall-e")
    assert names(folder) == []


def test_a_file_copied_by_hand_works_the_same_way(folder: Path, published: Path) -> None:
    put(published, folder, "encoder.pkl")
    tokenizer = load_tokenizer("dall-e")
    assert not tokenizer.can_decode
    assert tokenizer.encode(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 2, 2)
    assert settings(folder)["sources"]["encoder"]["url"] == ""
    assert names(folder) == ["config.json", "encoder.pkl", "model.safetensors"]
    put(published, folder, "decoder.pkl")  # later
    assert load_tokenizer("dall-e").can_decode
    assert tokenizer.fingerprint == load_tokenizer(folder).fingerprint


def test_a_decoder_that_cannot_be_had_does_not_stop_tokenizing(
    folder: Path, published: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(FileServer({"/encoder.pkl": (published / "encoder.pkl").read_bytes()})) as server:
        monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", server.url)
        with caplog.at_level(logging.WARNING, logger="beit"):
            assert not load_tokenizer("dall-e").can_decode
        assert "goes on without" in caplog.text and "decoder.pkl does not exist" in caplog.text
        count = len(server.requests)
        load_tokenizer("dall-e")
        assert len(server.requests) == count  # not asked for again, unless somebody wants pictures
        with pytest.raises(InputError, match=r"decoder, which pictures need, is not in .* cannot be downloaded"):
            load_tokenizer("dall-e", need_decoder=True)
        server.files["/decoder.pkl"] = (published / "decoder.pkl").read_bytes()
        assert load_tokenizer("dall-e", need_decoder=True).can_decode


def test_whether_there_is_a_decoder_is_known_without_any_network(folder: Path, published: Path) -> None:
    assert not has_decoder()
    put(published, folder, "decoder.pkl")
    assert not has_decoder()  # of no use alone: the encoder would have to be downloaded
    put(published, folder, "encoder.pkl")
    assert has_decoder()
    load_tokenizer("dall-e")
    for part in ("encoder", "decoder"):
        (folder / f"{part}.pkl").unlink()
    assert has_decoder()


def test_a_damaged_decoder_does_not_stop_tokenizing(folder: Path, published: Path) -> None:
    put(published, folder, "encoder.pkl")
    (folder / "decoder.pkl").write_bytes(b"no pickle")
    assert not load_tokenizer("dall-e").can_decode
    with pytest.raises(InputError, match=r"decoder\.pkl is text"):
        load_tokenizer("dall-e", need_decoder=True)


def test_a_file_that_changed_is_refused(folder: Path, published: Path) -> None:
    put(published, folder, "encoder.pkl", "decoder.pkl")
    load_tokenizer("dall-e")
    write_pickle(DalleEncoder(), folder / "encoder.pkl")  # other random weights
    with pytest.raises(InputError, match=r"encoder\.pkl \(sha256 \w{12}\) is not the file .* remove .*config\.json"):
        load_tokenizer("dall-e")
    (folder / "config.json").unlink()
    assert load_tokenizer("dall-e").fingerprint == load_tokenizer(folder / "encoder.pkl").fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "decoder.safetensors"])
def test_a_flipped_bit_in_what_was_converted_is_found(folder: Path, published: Path, name: str) -> None:
    put(published, folder, "encoder.pkl", "decoder.pkl")
    load_tokenizer("dall-e")
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} and config\.json do not belong together"):
        load_tokenizer("dall-e")


def test_a_conversion_killed_before_its_commit_is_done_again(
    folder: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(published, folder, "encoder.pkl")

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("beit.common.tokenizers.directory.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_dalle()
    assert not (folder / "config.json").exists()
    assert load_tokenizer("dall-e").vocab_size == 32


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_one_line(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.parent.chmod(0o500)
    with pytest.raises(InputError, match="point BEIT_CACHE at a folder"):
        load_tokenizer("dall-e")


def test_a_cache_that_is_a_file_is_one_line(folder: Path) -> None:
    folder.parent.write_text("")
    with pytest.raises(InputError, match="cannot keep the DALL-E tokenizer in .* point BEIT_CACHE at a folder"):
        load_tokenizer("dall-e")


def test_bare_files_that_cannot_be_converted_in_place_are_read(
    folder: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(published, folder, "encoder.pkl")
    monkeypatch.setattr(dalle_cache.os, "access", lambda path, mode: False)  # a read-only share
    assert load_tokenizer("dall-e").fingerprint == load_tokenizer(published).fingerprint
    assert names(folder) == ["encoder.pkl"]


def test_tensors_survive_the_conversion_bit_for_bit(folder: Path, published: Path) -> None:
    put(published, folder, "encoder.pkl", "decoder.pkl")
    from beit.common.tokenizers.directory import load_model

    converted, bare = load_model(prepare_dalle()).model.state_dict(), load_model(published).model.state_dict()
    assert converted.keys() == bare.keys()
    assert all(torch.equal(converted[name], bare[name]) for name in bare)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(remote_place, "PIECE_BYTES", 1000)
    return 1000


def begin(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Leave what a process leaves that is stopped on its way; return how much that is."""
    folder.mkdir(parents=True)
    real = download._pieces_from

    def stop(url: str, start: int) -> Iterator[bytes]:
        for piece in real(url, start):
            yield piece
            if start + len(piece) >= 1000:
                raise KeyboardInterrupt

    monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", server.url)
    with monkeypatch.context() as patch:
        patch.setattr(download, "_pieces_from", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_dalle()
    assert not (folder / "encoder.pkl").exists()
    return (folder / "encoder.pkl.part").stat().st_size


def test_what_an_earlier_process_left_is_gone_on_from(
    folder: Path, published: Path, small_pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(FileServer(files_of(published))) as server:
        have = begin(server, folder, monkeypatch)
        sent = server.bytes_sent
        load_tokenizer("dall-e")
        size = sum(map(len, server.files.values()))
        assert 0 < have < size and server.bytes_sent - sent < size - have + 100
    assert (folder / "encoder.pkl").read_bytes() == (published / "encoder.pkl").read_bytes()
    assert names(folder) == sorted([*USED, "encoder.pkl", "decoder.pkl"])


@pytest.mark.parametrize("etag", ['"v2"', None])
def test_another_version_or_a_server_that_names_none_starts_anew(
    folder: Path, published: Path, small_pieces: int, monkeypatch: pytest.MonkeyPatch, etag: str | None
) -> None:
    with serve(FileServer(files_of(published), etag=etag if etag is None else '"v1"')) as server:
        begin(server, folder, monkeypatch)
        server.etag = etag
        (folder / "encoder.pkl.part").write_bytes(b"of the old version")
        load_tokenizer("dall-e")
    assert (folder / "encoder.pkl").read_bytes() == (published / "encoder.pkl").read_bytes()


@pytest.mark.parametrize("kind", [{"has_ranges": False}, {"is_chunked": True}])
def test_a_server_without_ranges_or_lengths_will_do(
    folder: Path, published: Path, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(FileServer(files_of(published), **kind)) as server:
        monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", server.url)
        load_tokenizer("dall-e")
    assert (folder / "encoder.pkl").read_bytes() == (published / "encoder.pkl").read_bytes()


def test_a_web_page_in_place_of_the_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(FileServer({"/encoder.pkl": b"<html>log in</html>"}, content_type="text/html")) as server:
        monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", server.url)
        with pytest.raises(
            InputError, match="what it gave is not the file: it is a web page; a proxy or log-in page may be in between"
        ):
            load_tokenizer("dall-e")


def test_a_full_disk_is_not_mistaken_for_the_network(
    folder: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serve(FileServer(files_of(published))) as server:
        monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", server.url)
        monkeypatch.setattr(dalle_cache.os, "fsync", fsync)
        with pytest.raises(InputError, match="cannot keep the DALL-E tokenizer in .*No space left on device"):
            load_tokenizer("dall-e")


def test_the_proxy_of_the_environment_is_used(folder: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy is asked for whole addresses.
    files = {f"http://example.invalid{name}": data for name, data in files_of(published).items()}
    with serve(FileServer(files)) as server:
        monkeypatch.setattr(dalle_cache, "OFFICIAL_URL", "http://example.invalid")
        monkeypatch.setenv("http_proxy", server.url)
        load_tokenizer("dall-e")
    assert settings(folder)["sources"]["encoder"]["url"] == "http://example.invalid/encoder.pkl"
