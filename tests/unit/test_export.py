"""`torch.export` and ONNX: one graph for any batch size, which computes what the model computes."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim, export

from beit.common.tokenizer import load_tokenizer
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.classification.model import ImageClassifier

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
ENCODERS = {
    "pre-trained": {},
    "own tables": {"pos_bias": "per_block"},
    "absolute": {"pos_bias": "none", "use_abs_pos_emb": True, "final_norm": True, "init_values": 0.0},
    "both": {"use_abs_pos_emb": True, "init_values": 0.0, "qkv_bias": False},
    "no positions": {"pos_bias": "none"},
}
POOLINGS = ("mean", "cls", "cls_mean")
OPEN_BATCH = {"images": {0: Dim("batch")}}


def make(kind):
    """Build a small model in which no tensor has a value that hides it."""
    torch.manual_seed(0)
    if kind in POOLINGS:
        config = ViTConfig(**SMALL, pos_bias="per_block", use_mask_token=False)
        model = ImageClassifier(config, num_classes=3, pooling=kind)
    else:
        model = VisionTransformer(ViTConfig(**SMALL, **ENCODERS[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def pictures(count, dtype=torch.float32):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in (*ENCODERS, *POOLINGS)),
        ("pre-trained", torch.bfloat16),
        ("cls_mean", torch.bfloat16),
    ],
    ids=str,
)
def test_one_graph_serves_every_batch_size_with_the_same_numbers(kind, dtype):
    model = make(kind).to(dtype)
    graph = export(model, (pictures(2, dtype),), dynamic_shapes=OPEN_BATCH).module()
    for count in (1, 2, 5):
        images = pictures(count, dtype)
        assert torch.equal(graph(images), model(images)), count


def test_a_graph_survives_its_file(tmp_path):
    model = make("pre-trained")
    torch.export.save(export(model, (pictures(2),), dynamic_shapes=OPEN_BATCH), tmp_path / "encoder.pt2")
    assert torch.equal(torch.export.load(tmp_path / "encoder.pt2").module()(pictures(7)), model(pictures(7)))


@pytest.mark.parametrize("kind", [*ENCODERS, *POOLINGS])
def test_half_precision_weights_give_nearly_the_same_features(kind):
    model, images = make(kind), pictures(3)
    wanted = model(images).detach()
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        found = model.to(dtype)(images.to(dtype)).detach()
        assert found.dtype == dtype
        assert float((found.float() - wanted).abs().max()) < tolerance * float(wanted.abs().max())


def test_the_residual_stream_stays_float32_under_autocast():
    model = make("pre-trained")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.embed(pictures(2)).dtype == model(pictures(2)).dtype == torch.float32


def test_image_sizes_are_fixed_and_another_one_is_refused():
    with pytest.raises(ValueError, match=r"must be 16x16 pixels"):
        make("pre-trained")(torch.zeros(1, 3, 32, 32))


def test_tokenizers_leave_batch_and_size_open():
    tokenizer = load_tokenizer("mini")
    sides = {0: Dim("batch"), 2: 8 * Dim("rows", min=2), 3: 8 * Dim("columns", min=2)}
    example = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    graph = export(tokenizer.encoder_module(), (example,), dynamic_shapes={"pixels": sides}).module()
    for shape in ((1, 3, 32, 32), (3, 3, 64, 40)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert torch.equal(graph(pixels), tokenizer.encode(pixels))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [*ENCODERS, *POOLINGS])
def test_onnx_runtime_computes_the_same_at_every_batch_size(kind, dtype, tmp_path):
    model, file = make(kind).to(dtype), str(tmp_path / "model.onnx")
    program = torch.onnx.export(model, (pictures(2, dtype),), dynamic_shapes=OPEN_BATCH, verbose=False)
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        images = pictures(count, dtype)
        (found,) = session.run(None, {"images": images.numpy()})
        wanted = model(images).detach().numpy()
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
