import pytest
import torch

from beit.common.tokenizers import dalle
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder, DalleModel, SameConv2d, map_pixels, unmap_pixels


@pytest.fixture(scope="module")
def encoder() -> DalleEncoder:
    with torch.device("meta"):
        return DalleEncoder()


@pytest.fixture(scope="module")
def decoder() -> DalleDecoder:
    with torch.device("meta"):
        return DalleDecoder()


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def expected_convolution(name: str, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    out, inner, kernel = shape
    return {f"{name}.w": (out, inner, kernel, kernel), f"{name}.b": (out,)}


def expected_shapes(first: dict[str, tuple[int, ...]], widths: list[int], kernels: list[int], start: int) -> dict:
    expected = dict(first)
    before = start
    for group, width in enumerate(widths, start=1):
        for block in (1, 2):
            prefix, inner = f"blocks.group_{group}.block_{block}", before if block == 1 else width
            if inner != width:
                expected |= expected_convolution(f"{prefix}.id_path", (width, inner, 1))
            quarter = width // 4
            for number, kernel in enumerate(kernels, start=1):
                sides = (width if number == 4 else quarter, inner if number == 1 else quarter, kernel)
                expected |= expected_convolution(f"{prefix}.res_path.conv_{number}", sides)
        before = width
    return expected


def test_encoder_has_the_published_names_shapes_and_count(encoder: DalleEncoder) -> None:
    first = expected_convolution("blocks.input", (256, 3, 7))
    expected = expected_shapes(first, [256, 512, 1024, 2048], [3, 3, 3, 1], 256)
    expected |= expected_convolution("blocks.output.conv", (8192, 2048, 1))
    assert shapes(encoder) == expected
    assert len(expected) == 74
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 53_786_240


def test_decoder_has_the_published_names_shapes_and_count(decoder: DalleDecoder) -> None:
    first = expected_convolution("blocks.input", (128, 8192, 1))
    expected = expected_shapes(first, [2048, 1024, 512, 256], [1, 3, 3, 3], 128)
    expected |= expected_convolution("blocks.output.conv", (6, 256, 1))
    assert shapes(decoder) == expected
    assert len(expected) == 76
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 43_829_766


def test_nothing_requires_gradients(encoder: DalleEncoder, decoder: DalleDecoder) -> None:
    assert not any(parameter.requires_grad for network in (encoder, decoder) for parameter in network.parameters())


def test_encoder_gives_one_word_per_8_px_and_decoder_inverts_the_size(
    encoder: DalleEncoder, decoder: DalleDecoder
) -> None:
    logits = encoder(torch.empty(2, 3, 112, 112, device="meta"))
    assert logits.shape == (2, 8192, 14, 14) and logits.dtype == torch.float32
    statistics = decoder(torch.zeros(2, 14, 14, dtype=torch.int64, device="meta"))
    assert statistics.shape == (2, 6, 112, 112)


def test_pixel_maps_are_inverse_and_end_at_eps() -> None:
    images = torch.linspace(0, 1, 256)
    assert torch.allclose(unmap_pixels(map_pixels(images)), images, atol=1e-6)
    assert map_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_residual_gain_is_one_over_layers_squared() -> None:
    assert dalle.POST_GAIN == 1 / 64 == 0.015625


def test_convolution_is_initialised_by_its_fan_in() -> None:
    torch.manual_seed(0)
    convolution = SameConv2d(64, 128, 3)
    assert convolution.w.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.02)
    assert not convolution.b.any()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> DalleModel:
    monkeypatch.setattr(dalle, "HIDDEN_WIDTH", 8)
    monkeypatch.setattr(dalle, "VOCAB_SIZE", 32)
    torch.manual_seed(0)
    return DalleModel(with_decoder=True)


def test_block_adds_the_scaled_branch(small: DalleModel) -> None:
    block = small.encoder.blocks.get_submodule("group_2.block_1")
    hidden = torch.randn(1, 8, 4, 4)
    branch = hidden
    for layer in block.res_path:
        branch = layer(branch)
    assert torch.allclose(block(hidden), block.id_path(hidden) + branch / 64, atol=1e-6)


def test_looking_words_up_equals_multiplying_one_hot(small: DalleModel) -> None:
    token_ids = torch.randint(0, 32, (2, 3, 3))
    assert small.decoder is not None
    one_hot = torch.nn.functional.one_hot(token_ids, 32).float().permute(0, 3, 1, 2)
    expected = small.decoder.blocks(one_hot)
    assert torch.allclose(small.decoder(token_ids), expected, atol=1e-5)


def test_words_are_the_argmax_over_channels_of_mapped_pixels(small: DalleModel) -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    logits = small.encoder(0.8 * (pixels / 255) + 0.1)
    assert torch.equal(small.pixels_to_ids(pixels), logits.argmax(dim=1))


def test_bfloat16_body_keeps_the_last_layer_in_float32(small: DalleModel) -> None:
    small.use_dtype(torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in small.encoder.named_parameters()}
    assert dtypes["blocks.output.conv.w"] == torch.float32
    assert {dtype for name, dtype in dtypes.items() if "output" not in name} == {torch.bfloat16}
    assert small.encoder(torch.rand(1, 3, 16, 16)).dtype == torch.float32
