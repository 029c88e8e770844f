"""Same weights, same inputs, same outputs as the public `dall_e` package, float32 on the CPU, random weights.

Tolerance of logits: 1e-5 relative to the largest, as other memory layouts sum in other orders. Token ids are identical.
"""

import random
import zipfile
from pathlib import Path

import pytest
import torch

from beit.common.errors import InputError
from beit.common.tokenizer import CompileMode, DTypeSetting, load_tokenizer
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder, map_pixels, unmap_pixels
from beit.common.tokenizers.dalle_files import read_part
from beit.tests.dall_e_files import dall_e_package, public_module, use_small_network, write_pickle

pytestmark = pytest.mark.reference
TOLERANCE = 1e-5


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert difference <= TOLERANCE, f"{difference:.2e} of the largest value"


def pixels_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("width", [64, 128])
def test_encoder_and_decoder_compute_what_the_public_ones_do(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    use_small_network(monkeypatch)
    monkeypatch.setattr("beit.common.tokenizers.dalle.HIDDEN_WIDTH", width)
    monkeypatch.setattr("beit.common.tokenizers.dalle.VOCAB_SIZE", 512)
    encoder, decoder = DalleEncoder(), DalleDecoder()
    images = pixels_of(3, 3, 64, 48).float() / 255
    with dall_e_package() as package, torch.no_grad():
        assert torch.equal(map_pixels(images), package.map_pixels(images))
        logits = public_module(package, encoder)(package.map_pixels(images))
        token_ids = logits.argmax(dim=1)
        one_hot = torch.nn.functional.one_hot(token_ids, 512).permute(0, 3, 1, 2).float()
        statistics = public_module(package, decoder)(one_hot)
        pictures = package.unmap_pixels(torch.sigmoid(statistics[:, :3]))
    ours = encoder(map_pixels(images))
    assert_close(ours, logits)
    assert torch.equal(ours.argmax(dim=1), token_ids)
    assert_close(decoder(token_ids), statistics)
    assert_close(unmap_pixels(torch.sigmoid(decoder(token_ids)[:, :3])), pictures)


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files at their real size, 215 and 175 MB, each in one of torch's formats."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    write_pickle(DalleEncoder(), folder / "encoder.pkl", zip_format=False)
    write_pickle(DalleDecoder(), folder / "decoder.pkl", zip_format=True)
    return folder


@pytest.mark.slow
def test_full_size_files_give_the_public_tensors_words_and_pictures(full_size: Path) -> None:
    assert not zipfile.is_zipfile(full_size / "encoder.pkl") and zipfile.is_zipfile(full_size / "decoder.pkl")
    images = pixels_of(1, 3, 32, 32)
    with dall_e_package() as package, torch.no_grad():
        # The way such a file must not be loaded, safe here because it was just written.
        encoder = torch.load(full_size / "encoder.pkl", weights_only=False)
        decoder = torch.load(full_size / "decoder.pkl", weights_only=False)
        token_ids = encoder(package.map_pixels(images.float() / 255)).argmax(dim=1)
        one_hot = torch.nn.functional.one_hot(token_ids, 8192).permute(0, 3, 1, 2).float()
        pictures = package.unmap_pixels(torch.sigmoid(decoder(one_hot)[:, :3]))
    for name, module, count in (("encoder", encoder, 53_786_240), ("decoder", decoder, 43_829_766)):
        part, tensors = read_part(full_size / f"{name}.pkl")
        expected = module.state_dict()
        assert part == name and tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        assert sum(tensor.numel() for tensor in tensors.values()) == count
    tokenizer = load_tokenizer(full_size)
    assert torch.equal(tokenizer.encode(images), token_ids)
    ours = torch.from_numpy(tokenizer.decode(token_ids)).permute(0, 3, 1, 2)
    assert ((pictures * 255).round() - ours.float()).abs().max() <= 1  # a value in the middle may round either way


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("dtype", "mode", "share"), [("float32", "off", 0.999), ("auto", "off", 0.98), ("auto", "on", 0.98)]
)
def test_words_of_a_gpu_agree_with_those_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: DTypeSetting, mode: CompileMode, share: float
) -> None:
    use_small_network(monkeypatch)
    monkeypatch.setattr("beit.common.tokenizers.dalle.HIDDEN_WIDTH", 64)
    write_pickle(DalleEncoder(), tmp_path / "encoder.pkl")
    images = pixels_of(32, 3, 112, 112)
    expected = load_tokenizer(tmp_path).encode(images)
    tokenizer = load_tokenizer(tmp_path, device="cuda", dtype=dtype, compile_encoder=mode)
    assert (tokenizer.encode(images).cpu() == expected).float().mean() >= share


@pytest.mark.slow
def test_damage_anywhere_in_a_file_is_refused_or_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    encoder = DalleEncoder()
    rng = random.Random(0)
    for zip_format in (True, False):
        path = tmp_path / "encoder.pkl"
        write_pickle(encoder, path, zip_format=zip_format)
        good = path.read_bytes()
        for length in (0, 1, 10, 100, *(rng.randrange(len(good)) for _ in range(10))):
            path.write_bytes(good[:length])
            with pytest.raises(InputError, match=r"encoder\.pkl"):
                read_part(path, "encoder")
        for _ in range(30):
            data = bytearray(good)
            data[rng.randrange(3000)] ^= 1 << rng.randrange(8)  # where the structure is
            path.write_bytes(data)
            try:
                read_part(path, "encoder")
            except InputError as error:
                assert "\n" not in str(error)
