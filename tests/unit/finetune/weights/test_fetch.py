"""Weights behind an address: what is needed, once, whole, of one version, and a token nowhere but at the hub."""

import io
import json
import logging

import pytest
import torch
from safetensors.torch import save as save_bytes

from beit.common.encoder import read_encoder_state
from beit.common.errors import InputError
from beit.common.storage import download, object_store
from beit.common.storage.answers import RemoteError
from beit.common.vit.description import read_encoder_config
from beit.finetune.weights.import_model import import_from
from beit.tests.file_server import FileServer, serve
from beit.tests.foreign_weights import HEADS, timm_vit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(object_store, "_HEADERS_OF", {})


def torch_bytes(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def is_the_encoder(folder):
    state = read_encoder_state(folder)
    return torch.equal(state["blocks.1.mlp.fc2.weight"], timm_vit()["blocks.1.mlp.fc2.weight"])


def hub(name="facebook/tiny", commit=COMMIT, **files):
    base = f"/{name}/resolve/{commit}"
    config = {"architecture": "vit_tiny", "model_args": {"num_heads": HEADS}}
    content = {"config.json": json.dumps(config).encode(), "preprocessor_config.json": json.dumps(PROCESSOR).encode()}
    content |= files or {"model.safetensors": save_bytes(timm_vit())}
    served = {f"{base}/{file}": data for file, data in content.items()}
    served[f"/api/models/{name}/revision/main"] = json.dumps({"sha": commit}).encode()
    return FileServer(served)


def test_a_file_is_fetched_once_and_its_origin_is_kept_without_a_signature(tmp_path):
    data = torch_bytes({"model": timm_vit()})
    with serve(FileServer({"/weights/dino_tiny.pth": data}, signature="sig=secret")) as server:
        address = f"{server.url}/weights/dino_tiny.pth"
        for number in range(2):
            result = import_from(f"{address}?sig=secret", tmp_path / f"encoder-{number}", num_heads=HEADS)
        assert server.bytes_sent < 1.5 * len(data)
    assert is_the_encoder(tmp_path / "encoder-1")
    provenance = read_encoder_config(tmp_path / "encoder-1").provenance
    assert provenance["imported_from"] == address and "secret" not in json.dumps(provenance)
    assert "dino, after the file's name" in result.summary


@pytest.mark.parametrize(
    ("break_off", "said"),
    [(KeyboardInterrupt(), ""), (RemoteError("gone"), "gone; 8 MB of it are kept; run the same command to go on")],
)
def test_what_was_interrupted_is_gone_on_from(tmp_path, monkeypatch, break_off, said):
    data = torch_bytes({"model": timm_vit(), "more": torch.zeros(3 << 20)})  # more than one piece of 8 MiB

    def interrupted(location, start):
        yield next(whole(location, start))
        raise break_off

    with serve(FileServer({"/w.pth": data})) as server:
        whole = download._pieces_from
        with monkeypatch.context() as patched, pytest.raises(type(break_off), match=said):
            patched.setattr(download, "_pieces_from", interrupted)
            import_from(f"{server.url}/w.pth", tmp_path / "encoder", num_heads=HEADS)
        assert not (tmp_path / "encoder").exists()
        server.bytes_sent = 0
        import_from(f"{server.url}/w.pth", tmp_path / "encoder", num_heads=HEADS)
        assert server.bytes_sent < len(data) - (7 << 20)
    assert is_the_encoder(tmp_path / "encoder")
    with pytest.raises(InputError, match=r"cannot be reached .*; give .*w\.pth instead, as it was fetched before"):
        import_from(f"{server.url}/w.pth", tmp_path / "again", num_heads=HEADS)


def test_of_a_model_of_the_hub_what_is_read_is_fetched_and_its_commit_kept(tmp_path, monkeypatch):
    server = hub()
    server.files[f"/facebook/tiny/resolve/{COMMIT}/pytorch_model.bin"] = b"not wanted"
    with serve(server):
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        import_from("hf://facebook/tiny", tmp_path / "encoder")
        import_from(f"hf://facebook/tiny@{COMMIT}", tmp_path / "again")
    assert not any("pytorch_model" in path for path in server.paths)
    stored = read_encoder_config(tmp_path / "encoder")
    assert is_the_encoder(tmp_path / "again") and stored.normalization.mean == (0.1, 0.2, 0.3)
    assert stored.provenance["imported_from"] == f"hf://facebook/tiny@{COMMIT}"
    assert stored.provenance["revision"] == COMMIT
    assert server.bytes_sent < 1.5 * sum(map(len, server.files.values()))


def test_a_model_in_parts_and_one_that_is_a_pickle_are_fetched_whole(tmp_path, monkeypatch):
    state = timm_vit()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    index = {"weight_map": {name: part for part, inside in parts.items() for name in inside}}
    files = {part: save_bytes({name: state[name] for name in inside}) for part, inside in parts.items()}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    for number, content in enumerate((files, {"pytorch_model.bin": torch_bytes(state)})):
        with serve(hub(**content)) as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            import_from("hf://facebook/tiny", tmp_path / f"encoder-{number}")
        assert is_the_encoder(tmp_path / f"encoder-{number}")


def test_a_token_goes_to_the_hub_alone_and_into_no_log(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(hub()) as server, serve(FileServer({"/w.pth": torch_bytes(timm_vit())})) as other:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        import_from("hf://facebook/tiny", tmp_path / "encoder")
        import_from(f"{other.url}/w.pth", tmp_path / "other", num_heads=HEADS)
    assert all(request["Authorization"] == "Bearer hf_secret" for request in server.requests)
    assert not any("Authorization" in request for request in other.requests)
    written = (tmp_path / "encoder/config.json").read_text() + caplog.text
    assert "hf_secret" not in written


def test_another_file_than_the_one_that_is_meant_is_refused(tmp_path):
    with serve(FileServer({"/w.pth": torch_bytes(timm_vit())})) as server:
        for wrong, message in (
            ("0" * 64, "or damaged: remove it and fetch it again"),
            ("xyz", "64 hexadecimal digits"),
        ):
            with pytest.raises(InputError, match=message):
                import_from(f"{server.url}/w.pth", tmp_path / "none", num_heads=HEADS, sha256=wrong)
        result = import_from(f"{server.url}/w.pth", tmp_path / "encoder", num_heads=HEADS)
        (digest,) = result.config.provenance["sha256"].values()
        import_from(f"{server.url}/w.pth", tmp_path / "again", num_heads=HEADS, sha256=digest[:12].upper())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://tiny", "must be hf://OWNER/NAME"),
        ("hf://a/b/c", "must be hf://OWNER/NAME"),
        ("hf://facebook/missing", "hf://facebook/missing has none of model.safetensors"),
        ("{url}/missing.pth", "missing.pth"),
        ("{url}/page.pth", "gave a web page"),
        ("{url}/", "must name a file"),
        ("http://127.0.0.1:9/w.pth", "127.0.0.1:9"),
        ("file:///tmp/w.pth", "must be a path"),
        ("ftps9://x/y.pth", "ftps9"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, source, message):
    with serve(FileServer({"/page.pth": b"<!DOCTYPE html><html>log in</html>"})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        given = source.format(url=server.url)
        with pytest.raises((InputError, RemoteError)) as error:
            import_from(given, tmp_path / "encoder")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "encoder").exists()
