"""How images were decoded that a model was trained on goes out with its export, and comes back with it."""

from dataclasses import replace

import pytest

from beit.common.encoder import read_encoder_config, read_encoder_state, save_model
from beit.common.errors import InputError
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.ranges import ValueRange
from beit.finetune.weights.by_hand import decoding_steps
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.import_exported import decoding_of
from beit.finetune.weights.import_model import import_encoder
from beit.tests.export_models import write_model

SCANS = Decoding(value_range=ValueRange.parse("percentile:1,99", (12.0, 900.0)), channels=(4, 3, 2), alpha="white")


@pytest.fixture
def scans(tmp_path):
    model, folder = write_model(tmp_path / "model", "encoder shared"), tmp_path / "scans"
    folder.mkdir()
    save_model(folder, read_encoder_state(model), replace(read_encoder_config(model), decoding=SCANS))
    return folder


@pytest.mark.parametrize("module", ["timm", "official"])
def test_an_export_says_how_images_are_decoded_and_is_read_back_so(tmp_path, scans, module):
    found = export_model(scans, tmp_path / "out", module=module)
    summary = " ".join(found.summary.split())
    assert "decoded with range percentile:1,99, channels [4, 3, 2], alpha white" in summary
    assert "values from 12 to 900 become 0 to 255" in summary
    back = import_encoder(tmp_path / "out", tmp_path / "back").config
    assert back.decoding == SCANS
    grey = import_encoder(tmp_path / "out", tmp_path / "grey", in_chans=1).config
    assert grey.decoding == replace(SCANS, channels="grey")


@pytest.mark.parametrize(("module", "document"), [("huggingface", "README.md"), ("onnx", "preprocessing.json")])
def test_the_other_targets_say_it_in_the_terminal_and_step_by_step_beside_the_weights(
    tmp_path, scans, module, document
):
    found = export_model(scans, tmp_path / "out", module=module)
    assert "decoded with range percentile:1,99, channels [4, 3, 2], alpha white" in " ".join(found.summary.split())
    text = (tmp_path / "out" / document).read_text()
    for step in decoding_steps(SCANS):
        assert step in text
    assert "low = 12 and high = 900" in text and "bands 4, 3 and 2, counted from 1" in text


def test_what_says_nothing_is_decoded_as_ever(tmp_path):
    folder = write_model(tmp_path / "model", "encoder shared")
    found = export_model(folder, tmp_path / "out", module="timm")
    assert "decoded with" not in found.summary and "decoding" not in (tmp_path / "out" / "config.json").read_text()
    assert import_encoder(tmp_path / "out", tmp_path / "back").config.decoding == USUAL
    assert decoding_of({}, 1, "x") == Decoding(channels="grey")


@pytest.mark.parametrize("said", [[], {"range": "percentile:1,99"}, {"channels": "blue"}, {"size": 3}])
def test_what_no_export_says_is_damage(said):
    with pytest.raises(InputError, match="x is damaged .*export it again"):
        decoding_of({"final_norm": True, "decoding": said}, 3, "x")
