import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from beit.common.encoder import load_encoder, save_model
from beit.common.errors import InputError
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.transform import normalize_images
from beit.common.vit.vit import VisionTransformer, grid_features
from beit.tests.support import write_tokenizer
from beit.tokenize.teacher import EncoderTeacher, PluginTeacher, load_teacher

SHA = "ab" * 32
IMAGES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MODULE = f"""
import torch

class Colours:
    img_size, grid_size, dim, fingerprint = 16, 4, 3, "{SHA}"

    def __init__(self, *, device, dtype):
        self.asked = (str(device), dtype)

    def features(self, images):
        return torch.nn.functional.avg_pool2d(images.float(), 4)
"""


@pytest.fixture(scope="module", params=[False, True], ids=["raw", "final norm"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    config = ViTConfig(img_size=16, patch_size=4, embed_dim=12, depth=3, num_heads=2, final_norm=request.param)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = VisionTransformer(config)
    described = EncoderConfig(architecture=config, normalization=Normalization((0.4,) * 3, (0.2,) * 3), task="pretrain")
    save_model(folder, model.state_dict(), described)
    return folder


@pytest.mark.parametrize("block", [None, 0, 2])
def test_features_are_those_of_the_block_that_was_asked_for(encoder: Path, block: int | None) -> None:
    teacher = load_teacher(encoder, block=block)
    assert (teacher.img_size, teacher.grid_size, teacher.dim) == (16, 4, 12)
    model = load_encoder(encoder)
    pixels = normalize_images(IMAGES, (0.4,) * 3, (0.2,) * 3)
    with torch.no_grad():
        (hidden,) = model.forward_intermediates(pixels, [2 if block is None else block])
        if block != 0:  # the last block's features pass the norm that is the encoder's own
            assert torch.equal(hidden, model.forward_features(pixels))
    features = teacher.features(IMAGES)
    assert features.dtype == torch.float32 and torch.equal(features, grid_features(hidden))


def test_a_teacher_is_told_apart_by_weights_and_block(encoder: Path) -> None:
    last, named, first = load_teacher(encoder), load_teacher(encoder, block=2), load_teacher(encoder, block=0)
    assert last.fingerprint == named.fingerprint != first.fingerprint
    assert isinstance(last, EncoderTeacher) and not any(weight.requires_grad for weight in last.encoder.parameters())


def test_a_block_that_is_not_there_and_a_folder_that_is_none_are_one_line(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--teacher-block \(3\) must be in \[0, 2\], the blocks of"):
        load_teacher(encoder, block=3)
    with pytest.raises(InputError, match="is not an encoder"):
        load_teacher(tmp_path)
    with pytest.raises(InputError, match="is not an encoder: there is no such folder"):
        load_teacher(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a tokenizer, not an encoder; give the folder `encoder` of a run"):
        load_teacher(write_tokenizer(tmp_path / "tokenizer"))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, under a name nobody else has."""
    name = f"teacher_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_class_in_the_current_folder_is_a_teacher(module: str) -> None:
    teacher: Any = load_teacher(f"{module}:Colours", dtype="bfloat16")
    assert (teacher.img_size, teacher.grid_size, teacher.dim, teacher.fingerprint) == (16, 4, 3, SHA)
    assert teacher.name == f"{module}:Colours" and teacher._features.__self__.asked == ("cpu", "bfloat16")
    assert teacher.features(IMAGES).shape == (2, 3, 4, 4)
    with pytest.raises(InputError, match=r"--teacher-block \(1\) chooses a block of an encoder, and .* is code"):
        load_teacher(f"{module}:Colours", block=1)
    with pytest.raises(InputError, match=r"teacher nowhere:Colours cannot be imported \(ModuleNotFoundError"):
        load_teacher("nowhere:Colours")


def plugin(**changes: Any) -> PluginTeacher:
    parts = {
        "img_size": 16,
        "grid_size": 4,
        "dim": 3,
        "fingerprint": SHA,
        "features": lambda images: torch.zeros(len(images), 3, 4, 4),
    }
    given = {name: value for name, value in (parts | changes).items() if value is not ...}
    return PluginTeacher(SimpleNamespace(**given), name="mine", device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: ...}, f"teacher mine has no {name}; it must offer img_size, grid_size, dim, fingerprint and")
            for name in ("img_size", "grid_size", "dim", "fingerprint", "features")
        ),
        ({"grid_size": 0}, r"teacher mine: grid_size \(0\) must be a positive whole number"),
        ({"dim": 3.0}, r"dim \(3\.0\)"),
        ({"fingerprint": "v1"}, r"fingerprint \('v1'\) must be a sha256"),
        ({"features": 3}, "features must be a method"),
    ],
)
def test_a_missing_or_wrong_attribute_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plugin(**changes)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            torch.zeros(2, 4, 4, 3),
            r"features returned torch.float32 \(2, 4, 4, 3\) for .*, must be floats \(2, 3, 4, 4\)",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "features returned torch.int64"),
        (torch.full((2, 3, 4, 4), float("nan")), "values that are not finite"),
        ([0.0], "features returned a list, must be a tensor or an array"),
    ],
)
def test_wrong_features_are_refused(result: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plugin(features=lambda images: result).features(IMAGES)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_features_may_be_an_array_of_any_floats(dtype: Any) -> None:
    given = np.arange(96).reshape(2, 3, 4, 4).astype(dtype)[..., ::-1]
    features = plugin(features=lambda images: given).features(IMAGES)
    assert features.dtype == torch.float32 and features[0, 0, 0].tolist() == [3, 2, 1, 0]
