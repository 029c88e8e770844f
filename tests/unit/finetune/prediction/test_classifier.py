"""A fine-tuned model in Python says what the commands say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit.common.errors import InputError
from beit.finetune.evaluation.evaluate import evaluate_model
from beit.finetune.prediction.predict import predict
from beit.finetune.train import run
from beit.tests.encoders import save_classifier
from beit.tests.unit.finetune.colours import finetune_config, write_images


def paths_of(folder):
    return sorted(folder.rglob("*.png"))


@pytest.mark.parametrize("source", ["run", "model"])
def test_predictions_are_those_of_beit_predict(finished, source):
    model = beit.load_model(finished.run if source == "run" else finished.run / "model")
    said = {p.key: p for batch in predict(finished.run, str(finished.val)) for p in batch}
    paths = paths_of(finished.val)
    found = model.predict(paths)
    for path, prediction in zip(paths, found, strict=True):
        twin = said[str(path.relative_to(finished.val))]
        assert prediction.key == str(path)
        assert prediction.labels == twin.labels
        assert np.allclose(prediction.probabilities, twin.probabilities, atol=1e-6)
    assert model.class_names == ("blue", "red")
    assert not model.training and not model.multi_label


def test_one_image_gives_one_prediction_in_any_form(finished):
    model, path = beit.load_model(finished.run), paths_of(finished.val)[0]
    wanted = model.predict(path)
    assert wanted.label == wanted.labels[0] == path.parent.name
    assert wanted.probability == wanted.probabilities[0]
    forms = [str(path), Image.open(path)]
    assert all(model.predict(form).probabilities == wanted.probabilities for form in forms)
    floats = model.transform.batch([path])
    pixels = torch.from_numpy(model.transform.pixels(path)).permute(2, 0, 1)[None]
    for batch in (floats, pixels):
        (found,) = model.predict(batch)
        assert found.probabilities == wanted.probabilities and found.key == "0"
    assert torch.equal(model(floats).softmax(1), model.probabilities(pixels))
    assert len(model.predict(path, top_k=1).labels) == 1


def test_many_images_are_taken_a_few_at_a_time(tmp_path):
    save_classifier(tmp_path, class_names=("a", "b", "c"))
    model = beit.load_model(tmp_path)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    found = model.predict(Image.new("RGB", (32, 32), (value, 0, 0)) for value in range(70))
    assert max(seen) <= 32 and sum(seen) == 70
    assert [prediction.key for prediction in found] == [str(number) for number in range(70)]
    assert model.predict([]) == [] == model.predict(torch.zeros(0, 3, 32, 32))


def test_several_labels_have_probabilities_of_their_own(tmp_path):
    save_classifier(tmp_path, class_names=("a", "b", "c"), multi_label=True)
    model = beit.load_model(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.probabilities(images), model(images).sigmoid())
    for prediction in model.predict(images):
        over = {n for n, p in zip(prediction.labels, prediction.probabilities, strict=True) if p >= 0.5}
        assert set(prediction.predicted) == over


def test_half_precision_takes_pixels_and_floats(tmp_path):
    save_classifier(tmp_path, class_names=("a", "b"), pooling="cls_mean")
    model, pixels = beit.load_model(tmp_path), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    wanted = model.probabilities(pixels).detach()
    found = model.bfloat16().probabilities(pixels).detach()
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=0.05)


def test_wrong_input_says_what_is_right(tmp_path, finished):
    model = beit.load_model(finished.run)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, S, S\), got \(3, 32, 32\); images\[None\]"):
        model.predict(torch.zeros(3, 32, 32))
    with pytest.raises(InputError, match="does not exist"):
        model.predict(tmp_path / "nothing.jpg")
    with pytest.raises(ValueError, match="must be at least 1"):
        model.predict(torch.zeros(1, 3, 32, 32), top_k=0)
    with pytest.raises(InputError, match="without a classification head"):
        folder = tmp_path / "encoder"
        save_classifier(folder, class_names=("a", "b"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"task": "pretrain", "class_names": None}))
        beit.load_model(folder)


def test_the_crop_of_its_validation_stays_with_the_model(tmp_path):
    train, val = (
        write_images(tmp_path / name, ("blue", "red"), 8, start=at) for name, at in (("train", 0), ("val", 50))
    )
    run(
        finetune_config(f"data.val={val}", "train.steps=2", "evaluation.crop_pct=0.5"),
        data=str(train), run_dir=tmp_path / "run",
    )  # fmt: skip
    model = beit.load_model(tmp_path / "run")
    assert model.transform.crop_pct == 0.5
    assert json.loads((tmp_path / "run/model/config.json").read_text())["crop_pct"] == 0.5
    last = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    kept = [line["val_loss"] for line in last if "val_loss" in line]
    assert evaluate_model(tmp_path / "run", str(val)).metrics.loss == pytest.approx(kept[-1], rel=1e-4)
