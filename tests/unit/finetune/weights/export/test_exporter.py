"""`beit export`: proved or not there; one line for what a target cannot hold, and nothing half-written."""

import re
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml  # comes with transformers
from click.testing import CliRunner
from safetensors import SafetensorError

from beit.common.encoder import read_encoder_state
from beit.common.errors import InputError, RunFailed
from beit.finetune.weights.commands import export_command
from beit.finetune.weights.export import huggingface
from beit.finetune.weights.export.exporter import compare, export_model, import_library
from beit.finetune.weights.export.huggingface_names import plan_export
from beit.finetune.weights.export.source import ExportOptions, our_outputs, probe_images, probe_mask, read_source
from beit.tests.export_models import KINDS, PLAIN, classifier, encoder, masked, segmenter


@pytest.fixture
def target(monkeypatch):
    """A target that writes one file and computes what ours does, unless a test says otherwise."""

    def write(source, folder, options):
        (folder / "weights").write_text(f"{source.what} {options.name} {options.dtype}")
        return [folder / "weights"]

    module = SimpleNamespace(
        LIBRARY="library", write=write, reload=lambda folder, source: lambda images: our_outputs(source, images)
    )
    monkeypatch.setitem(sys.modules, "beit.finetune.weights.export.target", module)
    return module


def export(tmp_path, write=encoder, out="out", **options):
    if not (tmp_path / "ours").exists():
        write(tmp_path / "ours")
    return export_model(tmp_path / "ours", tmp_path / out, module="target", **options)


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "ours")


def test_what_is_proved_is_kept(tmp_path, target):
    done = export(tmp_path, masked, out="deep/out")
    assert done.files == [tmp_path / "deep/out/weights"]
    assert done.files[0].read_text() == "masked out float32"
    said, titles, *rows = [line.split() for line in done.summary.splitlines()]
    assert said == ["library", "and", "beit", "on", "the", "same", "3", "images,", "float32:"]
    assert titles == ["output", "largest", "difference", "tolerance"]
    assert [row[:2] for row in rows] == [[name, "0.0e+00"] for name in ("features", "pooled", "logits")]
    assert left(tmp_path) == ["deep"]


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_what_differs_is_refused_and_gone(tmp_path, target, wrong):
    target.reload = lambda folder, source: (
        lambda images: {"features": our_outputs(source, images)["features"] + torch.tensor([wrong])}
    )
    with pytest.raises(RunFailed, match=r"library computes something else from the export: features by .* \(at most"):
        export(tmp_path, out="deep/out")
    assert left(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, InputError])
@pytest.mark.parametrize("where", ["write", "reload"])
def test_whatever_stops_it_leaves_nothing(tmp_path, target, where, error):
    def stop(*_arguments):
        raise error("stopped")

    setattr(target, where, stop)
    with pytest.raises(error):
        export(tmp_path, out="deep/out")
    assert left(tmp_path) == []


def test_what_a_killed_export_left_goes_with_the_next(tmp_path, target):
    (tmp_path / "out.tmp.1.00000000aaaaaaaa").mkdir()
    export(tmp_path)
    (tmp_path / "old").mkdir()
    assert "out" in left(tmp_path)


def test_a_folder_with_something_in_it_is_refused(tmp_path, target):
    export(tmp_path)
    with pytest.raises(InputError, match=r"out is not an empty folder; name a new one"):
        export(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="OUT .*file is a file; name a folder"):
        export(tmp_path, out="file")
    assert (tmp_path / "out/weights").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert export(tmp_path, out="link").files[0].read_text().startswith("encoder link")


def test_the_model_itself_is_no_place(tmp_path, target):
    with pytest.raises(InputError, match="ours"):
        export(tmp_path, out="ours/inside")


def test_without_the_library_it_says_what_was_not_checked(tmp_path, target):
    target.reload = lambda folder, source: None
    assert "library cannot be imported: names and shapes were checked" in " ".join(export(tmp_path).summary.split())


@pytest.mark.parametrize("size", [30, 7])
def test_a_size_that_patches_do_not_fill_is_one_line(tmp_path, target, size):
    with pytest.raises(InputError, match=rf"img_size \({size}\) must be a multiple of patch_size"):
        export(tmp_path, img_size=size)
    assert left(tmp_path) == []


def test_a_size_that_no_machine_computes_is_one_line(tmp_path, target):
    with pytest.raises(InputError, match=r"--img-size 100000 is 156,250,000 patches, whose attention takes .* GB are"):
        export(tmp_path, img_size=100_000)
    assert left(tmp_path) == []


def test_a_library_that_is_broken_is_said_to_be_and_one_that_is_missing_is_not(tmp_path, monkeypatch, caplog):
    assert import_library("no_such_library") is None and not caplog.messages
    (tmp_path / "broken_library.py").write_text('raise RuntimeError("built for\\nanother torch")')
    monkeypatch.syspath_prepend(tmp_path)
    assert import_library("broken_library") is None
    assert caplog.messages == ["broken_library cannot be imported: built for another torch"]
    assert import_library("json", "loads").__name__ == "json"
    assert import_library("json", "no_such_name") is None and "no_such_name" in caplog.messages[-1]


@pytest.mark.parametrize("module", ["official", "huggingface", "timm", "onnx"])
def test_a_full_disk_is_one_line_that_names_the_export(tmp_path, monkeypatch, module):
    """As the libraries put it: torch and safetensors have errors of their own, onnx_ir gives that of the system."""
    masked(tmp_path / "ours")
    full = OSError(28, "No space left on device")
    for name, error in (
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672]")),
        ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device")),
        ("onnx_ir.save", full),
    ):
        monkeypatch.setattr(name, Mock(side_effect=error))
    with pytest.raises(OSError, match=f"{tmp_path}/deep/out") as raised:
        export_model(tmp_path / "ours", tmp_path / "deep/out", module=module)
    assert ".tmp." not in str(raised.value) and "space" in str(raised.value)
    assert left(tmp_path) == []


def test_differences_are_relative_to_the_largest_value():
    (found,) = compare({"a": torch.tensor([100.0, 1.0])}, {"a": torch.tensor([100.0, 1.5]), "b": torch.zeros(1)}, 1e-2)
    assert (found.output, found.largest, found.tolerance, found.is_small) == ("a", 0.5, 1.0, True)


def test_the_probe_is_the_same_every_time_and_hides_other_patches_of_every_image(tmp_path):
    masked(tmp_path / "ours")
    source = read_source(tmp_path / "ours")
    assert torch.equal(probe_images(source), probe_images(source)) and len(probe_images(source)) > 1
    mask = probe_mask(source)
    assert mask.sum(1).tolist() == [6, 6, 6] and not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize("name", KINDS)
def test_every_tensor_is_in_the_plan(tmp_path, name):
    """Nothing is lost: as many numbers as there were, besides those that are said to be added or left out."""
    KINDS[name](tmp_path / "ours")
    source = read_source(tmp_path / "ours")
    plan = plan_export(source)
    added = re.compile(r"pooler\.(dense|layernorm)|key\.bias")
    block = f"encoder.layer.{source.config.architecture.depth}."
    kept = {key: value for key, value in plan.tensors.items() if block not in key}
    if source.what == "encoder":
        kept = {key: value for key, value in kept.items() if not added.search(key)}
    kept = {key: value for key, value in kept.items() if not key.endswith("key.bias")}
    assert sum(value.numel() for value in kept.values()) == sum(value.numel() for value in source.state.values())
    assert bool(plan.notes) == (name == "segmenter")


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda folder: classifier(folder, pooling="cls_mean"), r"\(cls_mean\), and BeitForImageClassification"),
        (lambda folder: segmenter(folder, kind="linear", norm="auto"), "its head is linear"),
        (lambda folder: segmenter(folder, kind="fpn"), "its head is fpn"),
        (lambda folder: segmenter(folder, norm="group"), "group norms"),
        (lambda folder: segmenter(folder, channels=8), "its head has 8 channels, the encoder 24"),
        (lambda folder: segmenter(folder, blocks=(1, 1, 2, 3)), r"looks at a block twice \(1, 1, 2, 3\)"),
    ],
    ids=["cls_mean", "linear", "fpn", "group", "channels", "twice"],
)
def test_what_transformers_has_no_class_for_is_one_line(tmp_path, write, line):
    write(tmp_path / "ours")
    with pytest.raises(InputError, match=line) as refused:
        export_model(tmp_path / "ours", tmp_path / "deep/out", module="huggingface")
    assert "\n" not in str(refused.value) and "--to onnx" in str(refused.value)
    assert left(tmp_path) == []


def test_what_is_left_out_or_added_is_said(tmp_path):
    encoder(tmp_path / "masking", PLAIN, use_mask_token=True)
    assert plan_export(read_source(tmp_path / "masking")).notes == [
        "mask_token was left out: a ViTModel has no place for it"
    ]
    masked(tmp_path / "biasless", qkv_bias=False)
    assert "query and value biases of zero were added" in plan_export(read_source(tmp_path / "biasless")).notes[0]


@pytest.mark.parametrize("module", ["huggingface", "official", "timm", "onnx"])
def test_blocks_that_only_pretraining_runs_are_left_out_whatever_the_form(tmp_path, module):
    masked(tmp_path / "ours", aggregate=2)
    assert any(name.startswith("cls_pt_layers.1.") for name in read_encoder_state(tmp_path / "ours"))
    done = export_model(tmp_path / "ours", tmp_path / "out", module=module)
    assert re.search(r"left out, since only pre-training\s+runs them: 30 tensors", done.summary)
    masked(tmp_path / "plain")
    export_model(tmp_path / "plain", tmp_path / "same", module=module)
    for file in done.files:
        if file.suffix in (".pth", ".safetensors"):
            assert abs(file.stat().st_size - (tmp_path / "same" / file.name).stat().st_size) < 100
            assert b"cls_pt_layers" not in file.read_bytes()


def test_without_transformers_the_folder_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    masked(tmp_path / "ours")
    done = export_model(tmp_path / "ours", tmp_path / "out", module="huggingface")
    assert "transformers cannot be imported" in done.summary
    assert sorted(file.name for file in done.files) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_the_card_is_markdown_with_a_yaml_header_and_says_where_the_model_is_from(tmp_path):
    classifier(tmp_path / "ours")
    source = read_source(tmp_path / "ours")
    (tmp_path / "out").mkdir()
    huggingface.write(source, tmp_path / "out", ExportOptions(name="red | foxes"))
    card = (tmp_path / "out/README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "image-classification"
    assert "license" not in header  # it is the user's
    assert 'AutoModelForImageClassification.from_pretrained("red | foxes")' in card and "# red \\| foxes" in card
    for row in ("| store | stores/photos |", "| tokenizer | mini |", "| step | 10 |", "| held_out_acc | 0.25 |"):
        assert row in card
    assert "32 x 32 px" in card and "Look through it before you publish" in card


def test_the_command(tmp_path):
    encoder(tmp_path / "ours")
    before = {name: tensor.clone() for name, tensor in read_encoder_state(tmp_path / "ours").items()}
    words = [str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "hf", "--img-size", "48", "--dtype", "float16"]
    result = CliRunner().invoke(export_command, words, catch_exceptions=False)
    assert result.exit_code == 0 and f"wrote {tmp_path / 'out/model.safetensors'}" in result.output
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_encoder_state(tmp_path / "ours").items())
    assert CliRunner().invoke(export_command, [*words[:3], "paddle"]).exit_code == 2
