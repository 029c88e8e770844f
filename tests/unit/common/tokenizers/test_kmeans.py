import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from beit.common.errors import InputError
from beit.common.tokenizer import load_tokenizer
from beit.common.tokenizers.directory import save_tokenizer
from beit.common.tokenizers.kmeans import KMeansTokenizer
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.tokenizers.patches import cut_patches, join_patches
from beit.common.vit.config import ViTConfig
from beit.common.vit.transform import normalize_images
from beit.common.vit.vit import grid_features

VIT = ViTConfig(img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=2, use_mask_token=False, drop_path=0.0)
PIXELS = KMeansConfig(vocab_size=8, patch_size=4, anchor=1.0)
FEATURES = KMeansConfig(vocab_size=8, patch_size=4, vit=VIT, pixel_mean=(0.5,) * 3, pixel_std=(0.25,) * 3)
IMAGES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(config: KMeansConfig) -> KMeansTokenizer:
    """Fill a network by formulas."""
    model = KMeansTokenizer(config).eval().requires_grad_(False)
    for number, tensor in enumerate(model.state_dict().values()):
        values = torch.arange(tensor.numel(), dtype=torch.float32).view(tensor.shape)
        tensor.copy_(torch.cos(values * (number + 1.7)) * 0.3)
    model.deviation.abs_().add_(0.5)
    model.centres.copy_(F.normalize(model.centres, dim=1))
    return model


@pytest.fixture(params=[PIXELS, FEATURES], ids=["pixels", "features"])
def model(request: pytest.FixtureRequest) -> KMeansTokenizer:
    return network(request.param)


@pytest.fixture
def directory(model: KMeansTokenizer, tmp_path: Path) -> Path:
    patches = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    save_tokenizer(tmp_path / "words", model.state_dict(), model.config, training={}, patches=patches)
    return tmp_path / "words"


def test_patches_are_cut_row_by_row_and_joined_again() -> None:
    patches = cut_patches(IMAGES, 4)
    assert patches.shape == (2, 4, 4, 3, 4, 4)
    assert torch.equal(patches[1, 2, 3], IMAGES[1, :, 8:12, 12:16])
    assert torch.equal(join_patches(patches), IMAGES)


def test_a_word_is_the_centre_with_the_highest_cosine(model: KMeansTokenizer) -> None:
    vectors = (model.describe(IMAGES) - model.mean) / model.deviation
    if model.vit is None:
        anchors = torch.full((2, 4, 4, 1), float(np.sqrt(48)))
        vectors = torch.cat([vectors, anchors], dim=-1)
    cosines = F.cosine_similarity(vectors[..., None, :], model.centres, dim=-1)
    token_ids = model.pixels_to_ids(IMAGES)
    assert token_ids.shape == (2, 4, 4) and token_ids.dtype == torch.int64
    assert torch.equal(token_ids, cosines.argmax(-1))


def test_features_are_those_of_the_last_block_kept() -> None:
    model = network(FEATURES)
    assert model.vit is not None
    hidden = model.vit.forward_features(normalize_images(IMAGES, (0.5,) * 3, (0.25,) * 3))
    assert torch.equal(model.describe(IMAGES), grid_features(hidden).permute(0, 2, 3, 1))


@pytest.mark.parametrize(("standardise", "anchor"), [("none", 0.0), ("channel", 0.5), ("patch", 0.0), ("patch", 2.0)])
def test_directions_have_length_one_however_they_are_standardised(standardise: str, anchor: float) -> None:
    model = network(KMeansConfig(vocab_size=8, patch_size=4, standardise=standardise, anchor=anchor))  # type: ignore[arg-type]
    directions = model.directions(model.describe(IMAGES))
    assert directions.shape == (2, 4, 4, 48 + (anchor > 0))
    assert torch.allclose(directions.norm(dim=-1), torch.ones(2, 4, 4))


def test_contrast_and_brightness_do_not_matter_where_a_patch_is_standardised_by_itself() -> None:
    model = network(KMeansConfig(vocab_size=8, patch_size=4, standardise="patch"))
    darker = (IMAGES // 2 + 30).to(torch.uint8)
    plain, dark = (model.directions(model.describe(images)) for images in (IMAGES, darker))
    assert (plain * dark).sum(-1).min() > 0.99


def test_it_is_kept_whole_and_found_again(model: KMeansTokenizer, directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    assert torch.equal(tokenizer.encode(IMAGES), model.pixels_to_ids(IMAGES))
    assert (tokenizer.vocab_size, tokenizer.downsampling) == (8, 4)
    assert tokenizer.img_size == (None if model.vit is None else 16)
    painted = tokenizer.decode(np.array([[[3, 5]]]))  # any grid, whatever is encoded
    assert painted[0, 0, 0].tolist() == [3] * 3 and painted[0, 3, 7].tolist() == [5] * 3
    if model.vit is not None:
        with pytest.raises(ValueError, match="images of 32 x 32 px must be 16 x 16 px"):
            tokenizer.encode(np.zeros((1, 32, 32, 3), np.uint8))


def test_without_mean_patches_it_encodes_and_does_not_decode(model: KMeansTokenizer, directory: Path) -> None:
    before = load_tokenizer(directory).fingerprint
    (directory / "decoder.safetensors").unlink()
    tokenizer = load_tokenizer(directory)
    assert tokenizer.fingerprint == before and not tokenizer.can_decode
    with pytest.raises(InputError, match="has no decoder"):
        tokenizer.decode(np.zeros((1, 2, 2), np.int64))


def test_patches_of_another_tokenizer_are_refused(directory: Path) -> None:
    file = directory / "decoder.safetensors"
    patches = load_file(file)["patches"]
    save_file({"patches": patches + 1}, file)
    with pytest.raises(InputError, match=r"decoder.safetensors and config.json do not belong together"):
        load_tokenizer(directory)
    save_file({"patches": patches[:4].clone()}, file)
    with pytest.raises(InputError, match=r"must hold patches, uint8 \(8, 3, 4, 4\), and no more"):
        load_tokenizer(directory)


def test_absurd_settings_are_noticed_before_anything_of_their_size_is_built(directory: Path) -> None:
    file = directory / "config.json"
    document = json.loads(file.read_text())
    if "vit" in document["model"]:
        document["model"]["vit"]["img_size"] = 4 * 10**9
    else:
        document["model"]["patch_size"] = 10**9
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="has a number, .*, that the tensors beside it cannot have"):
        load_tokenizer(directory)


def test_fingerprints_are_pinned() -> None:
    # Stores name their tokenizer by them: a change of the rule would orphan them.
    assert PIXELS.identity() == {"vocab_size": 8, "patch_size": 4, "anchor": 1.0}
    assert FEATURES.identity() == {
        "vocab_size": 8,
        "patch_size": 4,
        "pixel_mean": (0.5,) * 3,
        "pixel_std": (0.25,) * 3,
        "vit": {
            "img_size": 16,
            "patch_size": 4,
            "embed_dim": 12,
            "depth": 2,
            "num_heads": 2,
            "drop_path": 0.0,
            "use_mask_token": False,
        },
    }


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match=r"patch_size \(8\) must be that of the transformer"):
        KMeansConfig(patch_size=8, vit=VIT)
    with pytest.raises(InputError, match=r"standardise \(patch\) is for words of pixels"):
        KMeansConfig(patch_size=4, vit=VIT, standardise="patch")
