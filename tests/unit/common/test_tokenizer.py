import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from beit.common.errors import InputError
from beit.common.rng import CounterRng
from beit.common.tokenizer import BUNDLED_DIR, choose_compile, choose_dtype, load_tokenizer
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder, DalleModel
from beit.common.tokenizers.directory import dalle_fingerprint, fingerprint, recorded_sources, save_tokenizer
from beit.common.tokenizers.dvae import DiscreteVAE
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.tests.dall_e_files import use_small_network, write_pickle
from beit.tokenize.synthetic import render_scene

CONFIG = DiscreteVAEConfig(vocab_size=32, width=16, num_blocks=1, code_dim=8)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_tokenizer(tmp_path / "mine", DiscreteVAE(CONFIG).state_dict(), CONFIG, training={"source": "test"})
    return tmp_path / "mine"


@pytest.fixture
def scenes() -> np.ndarray:
    return np.stack([render_scene(CounterRng(1, "test", i), 64) for i in range(24)])


def psnr(images: np.ndarray, reference: np.ndarray) -> float:
    error = ((images.astype(float) - reference.astype(float)) ** 2).mean(axis=(1, 2, 3)) / 255**2
    return float((-10 * np.log10(error)).mean())


def test_mini_keeps_more_than_the_mean_of_each_square(scenes: np.ndarray) -> None:
    mini = load_tokenizer("mini")
    means = scenes.reshape(24, 8, 8, 8, 8, 3).mean(axis=(2, 4), keepdims=True)
    blocks = np.broadcast_to(means, (24, 8, 8, 8, 8, 3)).reshape(scenes.shape)
    assert psnr(mini.decode(mini.encode(scenes)), scenes) > psnr(blocks, scenes) + 0.5


def test_mini_uses_its_vocabulary(scenes: np.ndarray) -> None:
    mini = load_tokenizer("mini")
    token_ids = mini.encode(scenes)  # 1536 words
    counts = torch.bincount(token_ids.flatten(), minlength=mini.vocab_size).double()
    share = counts[counts > 0] / counts.sum()
    assert (mini.vocab_size, mini.downsampling) == (1024, 8)
    assert (counts > 0).sum() > 300
    assert torch.exp(-(share * share.log()).sum()) > 200


def test_mini_is_small_and_says_where_it_comes_from() -> None:
    folder = BUNDLED_DIR / "mini"
    assert (folder / "model.safetensors").stat().st_size <= 10e6
    assert "MIT" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["training"]["source"].startswith("synthetic:")


def test_encode_takes_arrays_and_tensors_alike(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    images = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    token_ids = tokenizer.encode(images)
    assert token_ids.shape == (2, 14, 14) and token_ids.dtype == torch.int64
    assert torch.equal(tokenizer.encode(torch.from_numpy(images).permute(0, 3, 1, 2)), token_ids)
    decoded = tokenizer.decode(token_ids)
    assert decoded.shape == images.shape and decoded.dtype == np.uint8
    assert np.array_equal(tokenizer.decode(token_ids.numpy().astype(np.uint16)), decoded)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 16, 16), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((1, 16, 16, 3), np.float32),
        torch.zeros(1, 16, 16, 3, dtype=torch.uint8),
        np.zeros((1, 20, 16, 3), np.uint8),
        np.zeros((1, 0, 0, 3), np.uint8),
    ],
)
def test_encode_refuses_other_shapes(directory: Path, images: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        load_tokenizer(directory).encode(images)


def test_decode_refuses_words_outside_the_vocabulary(directory: Path) -> None:
    with pytest.raises(ValueError, match=r"0 to 32.*\[0, 32\)"):
        load_tokenizer(directory).decode(np.array([[[0, 32]]]))
    with pytest.raises(ValueError, match="integers"):
        load_tokenizer(directory).decode(np.zeros((1, 2, 2)))


def test_fingerprint_depends_on_weights_and_shape_only(directory: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(directory)
    assert load_tokenizer(directory, dtype="bfloat16").fingerprint == tokenizer.fingerprint
    state = load_state(directory)
    moved = save_tokenizer(tmp_path / "copy", state, CONFIG, training={"source": "elsewhere"})
    assert moved == tokenizer.fingerprint == load_tokenizer(tmp_path / "copy").fingerprint
    state["to_code.bias"][0] += 1e-3
    assert save_tokenizer(tmp_path / "other", state, CONFIG, training={}) != moved


def test_fingerprint_is_pinned() -> None:
    # Stores name their tokenizer by it: a change of the rule would orphan them.
    config = DiscreteVAEConfig(vocab_size=4, width=8, num_blocks=1, code_dim=2)
    state = {name: torch.arange(tensor.numel()).view(tensor.shape) / 64 for name, tensor in shapes(config).items()}
    assert fingerprint({"architecture": "dvae"}, state).startswith("e78f9d36cecd64a4")


def test_fingerprint_of_dall_e_is_that_of_the_network_without_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    model = DalleModel(with_decoder=False)
    found = dalle_fingerprint("encoder", model.encoder.state_dict())
    assert found == fingerprint({"architecture": "dall-e"}, model.state_dict())


def shapes(config: DiscreteVAEConfig) -> dict[str, torch.Tensor]:
    return dict(DiscreteVAE(config).state_dict())


def load_state(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_damaged_directories_are_refused(directory: Path) -> None:
    state = load_state(directory)
    weights = directory / "model.safetensors"
    changed = {name: tensor.clone() for name, tensor in state.items()}
    changed["to_code.bias"][0] += 1.0
    save_file(changed, weights)
    with pytest.raises(InputError, match="fingerprint differs"):
        load_tokenizer(directory)
    save_file({name: tensor for name, tensor in state.items() if name != "codebook"}, weights)
    with pytest.raises(InputError, match="codebook"):
        load_tokenizer(directory)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_tokenizer(directory)
    weights.unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load_tokenizer(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 10**9},
        {"num_blocks": 0},
        {"width": 2**40},
        {"width": -8},
        {"code_dim": 10**9},
        {"code_dim": "two"},
        {"vocab_size": 65536},
        {"vocab_size": 2.5},
        {"channels": 10**6},
        {"downsampling": 16},
    ],
)
def test_numbers_that_cannot_be_true_are_refused_before_anything_is_built(directory: Path, change: dict) -> None:
    file = directory / "config.json"
    settings = json.loads(file.read_text())
    settings["model"] |= change
    file.write_text(json.dumps(settings))
    with pytest.raises(InputError):
        load_tokenizer(directory)


@pytest.mark.parametrize("change", [{"model": []}, {"model": None}, {"architecture": []}, {"fingerprint": 5}])
def test_settings_of_another_kind_are_one_line(directory: Path, change: dict) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError):
        load_tokenizer(directory)


@pytest.mark.parametrize("sources", [None, [1], {"encoder": 3}, {"encoder": {}}, {"encoder": {"size": "x"}}])
def test_sources_of_another_kind_are_one_line(directory: Path, sources: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sources": sources}))
    with pytest.raises(InputError, match="sources"):
        recorded_sources(directory)


def test_unknown_formats_are_refused(directory: Path) -> None:
    file = directory / "config.json"
    settings = json.loads(file.read_text())
    for change, message in [
        ({"format": "beit-encoder"}, "is an encoder or a model, not a tokenizer; give what"),
        ({"format": "beit-thing"}, "is not a beit-tokenizer file"),
        ({"format_version": 2}, "format_version 2"),
        ({"architecture": "vqgan"}, "'vqgan'"),
        ({"model": {"vocabsize": 3}}, "vocabsize"),
    ]:
        file.write_text(json.dumps(settings | change))
        with pytest.raises(InputError, match=message):
            load_tokenizer(directory)


def test_unknown_names_and_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"neither a path nor one of mini, dall-e .did you mean dall-e.*; train one with"
    ):
        load_tokenizer("dalle")
    with pytest.raises(InputError, match=r"is no tokenizer: it must be a directory made by beit tokenizer train"):
        load_tokenizer(tmp_path)
    (tmp_path / "environment.json").touch()
    with pytest.raises(
        InputError, match=r"is no tokenizer but a run; .* that has not finished goes on by .*environment"
    ):
        load_tokenizer(tmp_path)


def test_folders_of_the_room_that_hold_no_tokenizer_are_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizers/__pycache__").mkdir(parents=True)
    (tmp_path / "tokenizers/mini").symlink_to(BUNDLED_DIR / "mini")
    monkeypatch.setattr("beit.common.tokenizer.BUNDLED_DIR", tmp_path / "tokenizers")
    with pytest.raises(
        InputError, match=r"neither a path nor one of mini, dall-e .did you mean dall-e.*; train one with"
    ):
        load_tokenizer("dalle")


def test_number_format_is_float32_on_a_cpu_and_float16_on_a_gpu_unless_asked() -> None:
    assert choose_dtype("auto", "cpu") == "float32"
    assert choose_dtype("auto", "cuda:1") == "float16"
    assert choose_dtype("bfloat16", "cpu") == choose_dtype("bfloat16", "cuda") == "bfloat16"
    assert load_tokenizer("mini").dtype == "float32"
    with pytest.raises(InputError, match=r"dtype \(float16\) is about 30 times slower"):
        load_tokenizer("mini", dtype="float16")
    with pytest.raises(InputError, match=r"dtype \(int8\) must be auto"):
        choose_dtype("int8", "cpu")  # type: ignore[arg-type]


def test_compilation_is_off_on_a_cpu_and_on_on_a_gpu_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not choose_compile("auto", "cpu") and choose_compile("on", "cpu")
    monkeypatch.setenv("CC", "gcc")
    for installed in (True, False):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=installed: object() if found else None)
        assert choose_compile("auto", "cuda") is installed
    assert not choose_compile("off", "cuda")
    with pytest.raises(InputError, match=r"compile_encoder \(yes\) must be auto, on or off"):
        choose_compile("yes", "cpu")  # type: ignore[arg-type]


def test_encode_goes_through_the_compiler_only_if_asked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def note(function: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", note)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    plain = load_tokenizer(directory)
    assert not plain.is_compiled and compiled == []
    tokenizer = load_tokenizer(directory, compile_encoder="on")
    assert tokenizer.is_compiled and len(compiled) == 1
    assert torch.equal(tokenizer.encode(images), plain.encode(images))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dvae", "dall-e"])
def test_the_compiler_takes_the_encoder_as_one_graph(
    directory: Path, dalle_folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory if kind == "dvae" else dalle_folder
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = load_tokenizer(path).encode(images)
    # All of torch.compile but the code generator, which needs a C++ compiler and a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    assert torch.equal(load_tokenizer(path, compile_encoder="on").encode(images), expected)


def test_a_needed_decoder_that_is_missing_is_an_error(dalle_folder: Path) -> None:
    with pytest.raises(InputError, match=r"has no decoder, so its tokens cannot be drawn.*decoder\.pkl"):
        load_tokenizer(dalle_folder, need_decoder=True)


@pytest.fixture
def dalle_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_small_network(monkeypatch)
    folder = tmp_path / "dall-e"
    folder.mkdir()
    write_pickle(DalleEncoder(), folder / "encoder.pkl", zip_format=True)
    return folder


def test_dall_e_has_one_fingerprint_in_every_format(dalle_folder: Path) -> None:
    tokenizer = load_tokenizer(dalle_folder / "encoder.pkl")
    write_pickle(DalleDecoder(), dalle_folder / "decoder.pkl", zip_format=True)
    with_decoder = load_tokenizer(dalle_folder)
    assert with_decoder.can_decode and with_decoder.fingerprint == tokenizer.fingerprint
    assert with_decoder.decode(np.zeros((1, 2, 2), np.int64)).shape == (1, 16, 16, 3)
    torch.manual_seed(0)
    save_file(DalleEncoder().state_dict(), dalle_folder / "encoder.safetensors")
    assert load_tokenizer(dalle_folder / "encoder.safetensors").fingerprint == tokenizer.fingerprint
