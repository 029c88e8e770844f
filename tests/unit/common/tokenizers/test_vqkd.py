"""The network of distilled words: what it computes, how it is kept, how its words are painted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError
from beit.common.tokenizer import load_tokenizer
from beit.common.tokenizers.directory import save_tokenizer
from beit.common.tokenizers.patches import PatchMeans
from beit.common.tokenizers.vqkd import VQKD
from beit.common.tokenizers.vqkd_config import VQKDConfig

TINY = VQKDConfig(vocab_size=32, code_dim=4, img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)


@pytest.fixture
def network() -> VQKD:
    torch.manual_seed(0)
    return VQKD(TINY).eval()


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_codes_are_unit_vectors_of_the_published_head(network: VQKD) -> None:
    codes = network.codes(pixels())
    assert codes.shape == (3, 4, 4, 4) and torch.allclose(codes.norm(dim=-1), torch.ones(3, 4, 4))
    hidden = network.vit.forward_features(pixels().float() / 127.5 - 1)[:, 1:]
    first, _, last = network.to_code
    expected = last(torch.tanh(first(hidden)))
    expected = (expected / expected.norm(dim=-1, keepdim=True)).view(3, 4, 4, 4)
    assert torch.allclose(codes, expected, atol=1e-6)
    assert torch.equal(network.pixels_to_ids(pixels()), (codes @ network.quantizer.codebook.t()).argmax(-1))


def test_the_transformer_is_the_published_one(network: VQKD) -> None:
    names = set(network.state_dict())
    assert {"vit.cls_token", "vit.pos_embed", "vit.norm.weight", "to_code.0.weight", "quantizer.codebook"} <= names
    assert not [name for name in names if "gamma" in name or "relative" in name or "mask_token" in name]
    assert network.vit.config.layer_norm_eps == 1e-6
    base = VQKDConfig()
    assert (base.vocab_size, base.code_dim, base.grid_size, base.vit.embed_dim, base.vit.depth) == (
        8192,
        32,
        14,
        768,
        12,
    )


def test_half_precision_leaves_codes_in_float32(network: VQKD) -> None:
    exact = network.pixels_to_ids(pixels(20))
    network.use_dtype(torch.bfloat16)
    assert (network.pixels_to_ids(pixels(20)) == exact).float().mean() > 0.8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.codes(pixels()).dtype == torch.float32


def save(network: VQKD, folder: Path, patches: torch.Tensor | None = None) -> str:
    return save_tokenizer(folder, network.state_dict(), TINY, training={}, patches=patches)


def test_a_directory_gives_the_same_words_and_paints_them_by_mean_patches(network: VQKD, tmp_path: Path) -> None:
    images = pixels(40)
    words = network.pixels_to_ids(images)
    means = PatchMeans(32, 4)
    for part in zip(torch.split(images, 7), torch.split(words, 7), strict=True):
        means.add(*part)
    digest = save(network, tmp_path / "out", means.result())
    tokenizer = load_tokenizer(tmp_path / "out", need_decoder=True)
    assert (tokenizer.fingerprint, tokenizer.img_size) == (digest, 16)
    assert torch.equal(tokenizer.encode(images), words)
    painted = tokenizer.decode(words)
    word = int(words[0, 1, 2])
    squares = [
        images[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].double()
        for b, i, j in np.ndindex(40, 4, 4)
        if int(words[b, i, j]) == word
    ]
    expected = torch.stack(squares).mean(dim=0).round().permute(1, 2, 0).numpy()
    assert np.array_equal(painted[0, 4:8, 8:12], expected)


def test_patches_are_no_part_of_the_fingerprint_and_may_be_left_out(network: VQKD, tmp_path: Path) -> None:
    patches = torch.zeros(32, 3, 4, 4, dtype=torch.uint8)
    assert save(network, tmp_path / "with", patches) == save(network, tmp_path / "without")
    (tmp_path / "with/decoder.safetensors").unlink()
    for name in ("with", "without"):
        assert not load_tokenizer(tmp_path / name).can_decode
        with pytest.raises(InputError, match="has no decoder"):
            load_tokenizer(tmp_path / name, need_decoder=True)


def test_a_changed_word_is_noticed(network: VQKD, tmp_path: Path) -> None:
    digest = save(network, tmp_path / "one")
    network.quantizer.codebook[3] *= -1
    assert save(network, tmp_path / "other") != digest
    (tmp_path / "one/model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(InputError, match="do not belong together"):
        load_tokenizer(tmp_path / "one")


def test_images_of_another_side_are_refused(network: VQKD, tmp_path: Path) -> None:
    save(network, tmp_path / "out")
    with pytest.raises(ValueError, match="32 x 32 px must be 16 x 16 px"):
        load_tokenizer(tmp_path / "out").encode(np.zeros((1, 32, 32, 3), np.uint8))


def test_what_training_alone_needs_is_not_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learning, finished = VQKD(TINY, is_learning=True), VQKD(TINY)
    assert set(learning.state_dict()) - set(finished.state_dict()) == {"quantizer.counts", "quantizer.sums"}
    save(finished, tmp_path / "out")
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(finished.state_dict())


def test_it_can_be_exported(network: VQKD, tmp_path: Path) -> None:
    save(network, tmp_path / "out")
    module = load_tokenizer(tmp_path / "out").encoder_module()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, (pixels(2),), dynamic_shapes=({0: batch},)).module()
    assert torch.equal(exported(pixels(5)), network.pixels_to_ids(pixels(5)))


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"model.img_size \(30\) must be a multiple of model.patch_size \(4\)"):
        VQKDConfig(img_size=30, patch_size=4)
    with pytest.raises(InputError, match=r"model.embed_dim \(100\) must be a multiple of model.num_heads \(12\)"):
        VQKDConfig(embed_dim=100)
    with pytest.raises(InputError, match="vocab_size"):
        VQKDConfig(vocab_size=70_000)


@pytest.mark.parametrize("ratio", [1e300, float("inf"), 1e9])
def test_an_absurd_width_of_hidden_layers_is_one_line(ratio: float) -> None:
    with pytest.raises(InputError, match=r"model.mlp_ratio \(.*\) must lie in \(0, 100\]"):
        VQKDConfig(mlp_ratio=ratio)
