import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from beit.common.errors import InputError
from beit.common.tokenizers.dalle import DalleDecoder, DalleEncoder
from beit.common.tokenizers.dalle_files import find_parts, load_dalle
from beit.common.tokenizers.safe_pickle import read_module_tensors
from beit.tests.dall_e_files import use_small_network, write_pickle

FORMATS = pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@FORMATS
def test_pickled_modules_load_bit_equal_without_their_package(tmp_path: Path, zip_format: bool) -> None:
    encoder, decoder = DalleEncoder(), DalleDecoder()
    write_pickle(encoder, tmp_path / "encoder.pkl", zip_format=zip_format)
    write_pickle(decoder, tmp_path / "decoder.pkl", zip_format=zip_format)
    assert zipfile.is_zipfile(tmp_path / "encoder.pkl") == zip_format
    loaded = load_dalle(*find_parts(tmp_path))
    assert equal_states(loaded.encoder, encoder)
    assert loaded.decoder is not None and equal_states(loaded.decoder, decoder)
    assert not any(name.partition(".")[0] == "dall_e" for name in sys.modules)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@FORMATS
def test_hostile_attribute_is_refused_and_not_run(tmp_path: Path, zip_format: bool) -> None:
    canary = tmp_path / "canary"
    write_pickle(DalleEncoder(), tmp_path / "encoder.pkl", zip_format=zip_format, extra=Hostile(canary))
    with pytest.raises(InputError, match="system"):
        load_dalle(*find_parts(tmp_path))
    assert not canary.exists()


@FORMATS
def test_hostile_file_is_refused_and_not_run(tmp_path: Path, zip_format: bool) -> None:
    canary = tmp_path / "canary"
    torch.save(Hostile(canary), tmp_path / "encoder.pkl", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(InputError, match="system"):
        load_dalle(*find_parts(tmp_path / "encoder.pkl"))
    assert not canary.exists()


def test_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "encoder.pkl").write_bytes(pickle.dumps(Hostile(canary)))
    with pytest.raises(InputError, match="not written by torch"):
        load_dalle(*find_parts(tmp_path))
    assert not canary.exists()


@FORMATS
def test_damage_gives_one_clear_line(tmp_path: Path, zip_format: bool) -> None:
    path = tmp_path / "encoder.pkl"
    write_pickle(DalleEncoder(), path, zip_format=zip_format)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"encoder\.pkl"):
        load_dalle(*find_parts(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"--2023-05-01 10:00:00--  https://cdn.openai.com/dall-e/encoder.pkl\nResolving", "is text, .*'--2023-05-01"),
        (b"<?xml version='1.0'?><Error><Code>PublicAccessNotPermitted</Code></Error>", "is a web page"),
        (b"PK\x03\x04\x00\x00\x08\x08", "is cut short"),
        (bytes(range(256)), "was not written by torch"),
    ],
)
def test_what_downloads_leave_instead_of_the_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "encoder.pkl").write_bytes(content)
    with pytest.raises(InputError, match=rf"encoder\.pkl {said}.*; fetch it again"):
        load_dalle(*find_parts(tmp_path))


@FORMATS
def test_state_dict_of_something_else_is_refused(tmp_path: Path, zip_format: bool) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(InputError, match="holds a dict, not a pickled module"):
        load_dalle(*find_parts(tmp_path))


@FORMATS
def test_module_of_something_else_is_refused(tmp_path: Path, zip_format: bool) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "encoder.pkl", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(InputError, match=r"names torch\.nn\.modules\.linear\.Linear"):
        load_dalle(*find_parts(tmp_path))


def test_state_dict_instead_of_module_is_refused(tmp_path: Path) -> None:
    torch.save(DalleEncoder().state_dict(), tmp_path / "encoder.pkl")
    with pytest.raises(InputError, match="not a pickled module"):
        load_dalle(*find_parts(tmp_path))


def test_decoder_in_place_of_encoder_is_refused(tmp_path: Path) -> None:
    write_pickle(DalleDecoder(), tmp_path / "encoder.pkl", zip_format=True)
    with pytest.raises(InputError, match="holds DALL-E's decoder, not its encoder"):
        load_dalle(*find_parts(tmp_path))


@FORMATS
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, zip_format: bool, value: float) -> None:
    encoder = DalleEncoder()
    encoder.blocks.get_parameter("input.b")[0] = value
    write_pickle(encoder, tmp_path / "encoder.pkl", zip_format=zip_format)
    with pytest.raises(InputError, match=r"blocks\.input\.b holds values that are not finite"):
        load_dalle(*find_parts(tmp_path))


def test_module_inside_itself_is_refused(tmp_path: Path) -> None:
    ring = nn.Sequential()
    ring._modules["again"] = ring
    torch.save(ring, tmp_path / "ring.pkl")
    with pytest.raises(InputError, match="contains itself"):
        read_module_tensors(tmp_path / "ring.pkl", ["torch.nn.modules.container.Sequential"])
