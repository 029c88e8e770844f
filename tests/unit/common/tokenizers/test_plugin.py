import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from beit.common.errors import InputError
from beit.common.shards.schema import TokenizerInfo
from beit.common.tokenizer import Tokenizer, load_store_tokenizer, load_tokenizer
from beit.common.tokenizers import plugin as plugin_module
from beit.common.tokenizers.plugin import ENTRY_POINT_GROUP, PluginModel, is_import_name

SHA = "ab" * 32
MODULE = f"""
class Zeros:
    vocab_size, downsampling, fingerprint = 7, 4, "{SHA}"

    def __init__(self, *, device, dtype):
        self.asked = (str(device), dtype)

    def encode(self, images):
        return images[:, 0, ::4, ::4].long() % 7

class Eight(Zeros):
    img_size = 8

class Twelve(Zeros):
    img_size = 12

class Lost:
    def __init__(self, device, dtype):
        raise FileNotFoundError("weights.pth is\\nnot there")

class Silent:
    def __init__(self):
        pass

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, under a name nobody else has."""
    name = f"plugin_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def plugin(**changes: Any) -> PluginModel:
    parts = {
        "vocab_size": 7,
        "downsampling": 4,
        "fingerprint": SHA,
        "encode": lambda images: torch.zeros(len(images), 2, 3, dtype=torch.int64),
    }
    given = {name: value for name, value in (parts | changes).items() if value is not ...}
    return PluginModel(SimpleNamespace(**given), name="mine", device=torch.device("cpu"))


def encode(**changes: Any) -> torch.Tensor:
    return plugin(**changes).pixels_to_ids(torch.zeros(5, 3, 8, 12, dtype=torch.uint8))


def test_a_class_in_the_current_folder_is_a_tokenizer(module: str) -> None:
    tokenizer = load_tokenizer(f"{module}:Zeros")
    assert (tokenizer.vocab_size, tokenizer.downsampling, tokenizer.fingerprint) == (7, 4, SHA)
    images = np.full((2, 8, 8, 3), 9, np.uint8)
    assert torch.equal(tokenizer.encode(images), torch.full((2, 2, 2), 2))
    with pytest.raises(InputError, match="has no decoder"):
        tokenizer.decode(np.zeros((1, 2, 2), np.int64))
    with pytest.raises(ValueError, match="divisible by 4"):
        tokenizer.encode(np.zeros((1, 6, 8, 3), np.uint8))


def test_device_and_number_format_are_passed_on(module: str) -> None:
    tokenizer: Any = load_tokenizer(f"{module}:Zeros", dtype="bfloat16")
    assert tokenizer._model._encode.__self__.asked == ("cpu", "bfloat16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Zeros", r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere'\)"),
        ("MODULE:Missing", r"cannot be imported \(AttributeError: .*Missing"),
        ("MODULE:number", "is a int, must be a class or a function"),
        ("MODULE:Silent", "must accept the keywords device and dtype"),
        (
            "MODULE:Lost",
            r"MODULE:Lost cannot be made \(FileNotFoundError: weights.pth is not there, at .*MODULE.py:19\)$",
        ),
        ("MODULE.py:Zeros", r"No module named .*; a module is named without .py: MODULE:Zeros$"),
    ],
)
def test_what_cannot_be_imported_or_called_is_one_line(module: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("MODULE", module)) as error:
        load_tokenizer(name.replace("MODULE", module))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('no licence')", r"RuntimeError: no licence, at .*MODULE.py:1"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])", r"SystemExit: 2, at .*MODULE.py:2"),
    ],
)
def test_a_module_that_fails_while_it_is_imported_is_one_line(module: str, source: str, told: str) -> None:
    """A script that ends by itself would end beit, too, with whatever code it likes."""
    Path(f"{module}.py").write_text(source)
    with pytest.raises(InputError, match=rf"cannot be imported \({told}\)".replace("MODULE", module)):
        load_tokenizer(f"{module}:Zeros")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": ...}, "tokenizer mine has no vocab_size; it must offer"),
        ({"encode": ...}, "has no encode"),
        ({"vocab_size": 0}, r"vocab_size \(0\) must be a positive whole number"),
        ({"downsampling": True}, r"downsampling \(True\) must be"),
        ({"downsampling": 8.0}, r"downsampling \(8\.0\) must be"),
        ({"fingerprint": "v1"}, r"fingerprint \('v1'\) must be a sha256"),
        ({"img_size": 10}, r"img_size \(10\) must be a multiple of downsampling \(4\)"),
        ({"img_size": "8"}, r"img_size \('8'\) must be a positive whole number"),
        ({"encode": 3}, "encode must be a method"),
        ({"decode": 3}, "decode must be a method, or absent"),
    ],
)
def test_a_missing_or_wrong_attribute_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plugin(**changes)


def test_what_is_missing_is_one_line_where_beit_is_installed_beside_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(Path(plugin_module.__file__).parents[2]))
    with pytest.raises(InputError, match=r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere'\);"):
        load_tokenizer("nowhere:Zeros")


def test_a_tokenizer_may_take_images_of_one_side_only() -> None:
    assert plugin().img_size is None and plugin(img_size=None).img_size is None
    model = plugin(img_size=8, encode=lambda images: torch.zeros(len(images), 2, 2, dtype=torch.int64))
    place = torch.device("cpu")
    tokenizer = Tokenizer(model, name="mine", fingerprint=SHA, can_decode=False, device=place)
    assert tokenizer.img_size == 8 and tokenizer.encode(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 2, 2)
    with pytest.raises(ValueError, match="images of 8 x 12 px must be 8 x 8 px, all that mine takes"):
        tokenizer.encode(np.zeros((1, 8, 12, 3), np.uint8))
    tokenizer.require_grid(2)
    with pytest.raises(InputError, match=r"mine takes images of 8 px only and gives 2 x 2 tokens, where .* is 14"):
        tokenizer.require_grid(14)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(5, 2, 3), "encode returned torch.float32, must be integers"),
        (torch.zeros(5, 2, 3, dtype=torch.bool), "encode returned torch.bool"),
        (torch.zeros(5, 6, dtype=torch.int64), r"shape \(5, 6\) for images \(5, 3, 8, 12\), must be \(5, 2, 3\)"),
        (np.zeros((5, 3, 2), np.int32), r"shape \(5, 3, 2\)"),
        (torch.full((5, 2, 3), 7), r"ids 7 to 7, must lie in \[0, 7\)"),
        (torch.full((5, 2, 3), -1, dtype=torch.int8), r"ids -1 to -1"),
        ([[0]], "encode returned a list"),
        (np.full((5, 2, 3), "a"), "encode returned an array of <U1, must be numbers"),
    ],
)
def test_wrong_words_are_refused(result: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(encode=lambda images: result)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, ">u2", ">i4"])
@pytest.mark.parametrize("step", [1, -1])
def test_words_may_be_arrays_of_any_integers(dtype: Any, step: int) -> None:
    token_ids = encode(encode=lambda images: np.tile(np.array([4, 5, 6], dtype), (5, 2, 1))[..., ::step])
    assert token_ids.dtype == torch.int64 and token_ids[4, 1].tolist() == [4, 5, 6][::step]


def test_pictures_must_be_uint8_of_the_right_size() -> None:
    ids = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert plugin(decode=lambda ids: np.zeros((1, 3, 8, 8), np.uint8)).ids_to_pixels(ids).shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match=r"decode returned torch\.float32 \(1, 3, 8, 8\), must be torch\.uint8"):
        plugin(decode=lambda ids: torch.zeros(1, 3, 8, 8)).ids_to_pixels(ids)


def test_an_installed_package_registers_a_name(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [importlib.metadata.EntryPoint("zeros", f"{module}:Zeros", ENTRY_POINT_GROUP)]

    def entry_points(*, group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        assert group == ENTRY_POINT_GROUP
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr("beit.common.tokenizers.plugin.entry_points", entry_points)
    monkeypatch.syspath_prepend(Path.cwd())
    assert load_tokenizer("zeros").fingerprint == SHA
    with pytest.raises(InputError, match=r"neither a path nor one of mini, dall-e, zeros"):
        load_tokenizer("ones")
    points.append(importlib.metadata.EntryPoint("zeros", "other:Zeros", ENTRY_POINT_GROUP))
    with pytest.raises(InputError, match="registered by several packages"):
        load_tokenizer("zeros")


def test_code_that_only_a_file_names_is_never_imported(module: str) -> None:
    Path(f"{module}.py").write_text(MODULE + "\nopen('ran', 'w').close()\n")
    info = TokenizerInfo(name=f"{module}:Zeros", fingerprint=SHA, vocab_size=7, downsampling=4)
    with pytest.raises(InputError, match=rf"name it yourself: --tokenizer {module}:Zeros"):
        load_store_tokenizer(info)
    assert not Path("ran").exists() and module not in sys.modules
    assert load_store_tokenizer(info, given=f"{module}:Zeros").fingerprint == SHA
    other = TokenizerInfo(name="x", fingerprint="cd" * 32, vocab_size=7, downsampling=4)
    with pytest.raises(InputError, match="is not the one the store was made with"):
        load_store_tokenizer(other, given=f"{module}:Zeros")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a:B", True), ("a.b:C.d", True), ("a", False), ("/a:B", False), ("a:", False), ("a:B ", False)],
)
def test_module_and_class_are_told_from_paths(name: str, expected: bool) -> None:
    assert is_import_name(name) is expected
