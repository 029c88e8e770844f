"""The benchmarks of whole stages run, and state the ratios that docs/results.md quotes."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.docs, pytest.mark.timeout(900)]


def run_benchmark(script, *options):
    command = [sys.executable, ROOT / "benchmarks" / script, *options, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=800).stdout)


def test_pretrain_speed_compares_loop_step_reader_dalle_and_hugging_face():
    shape = ["--recipe", "demo", "--img-size", "16", "--patch-size", "4", "--images", "8", "--image-side", "32"]
    small = ["model.embed_dim=32", "model.depth=2", "train.global_batch_size=2", "reader.num_workers=1"]
    settings = [word for setting in small for word in ("--set", setting)]
    result = run_benchmark("pretrain_speed.py", *shape, *settings, "--steps", "1", "--rounds", "1")
    rates, ratios = result["images_per_second"], result["ratios"]
    assert set(rates) == {"bare step", "reader alone", "whole loop", "DALL-E online", "Hugging Face"}
    # With one round, the median of the ratios is the ratio of the rates; both are rounded, ratios to three digits.
    tolerance = {"rel": 0.01, "abs": 0.001}
    assert ratios["whole loop / bare step"] == pytest.approx(rates["whole loop"] / rates["bare step"], **tolerance)
    least = min(rates["bare step"], rates["reader alone"])
    assert ratios["whole loop / min(bare step, reader alone)"] == pytest.approx(
        rates["whole loop"] / least, **tolerance
    )
    for other in ("DALL-E online", "Hugging Face"):
        assert ratios[f"bare step / {other}"] == pytest.approx(rates["bare step"] / rates[other], **tolerance)
    assert 0 < result["mfu_of_matrix_product"]["bare step"] < 1
    assert result["peak_memory_gb"] > 0.1


def test_segmentation_speed_compares_with_transformers_under_shared_weights():
    shape = ["--size", "tiny", "--img-size", "64", "--classes", "5", "--image-size", "64x64,90x64"]
    result = run_benchmark("segmentation_speed.py", *shape, "--images", "2", "--rounds", "1")
    assert result["difference"] < 1e-3
    names = {f"{head}, {mode}" for head in ("upernet", "linear") for mode in ("whole", "slide")}
    for size in ("64x64", "90x64"):
        rates, ratios = result["images_per_second"][size], result["ratios"][size]
        assert set(rates) == {"transformers", *names} and set(ratios) == names
        assert all(ratios[name] == pytest.approx(rates[name] / rates["transformers"]) for name in names)


@pytest.mark.parametrize("tokenizer", ["mini", "dall-e-random"])
def test_tokenize_stage_names_its_limit(tokenizer):
    shape = ["--img-size", "16", "--patch-size", "8", "--images", "4", "--image-side", "48", "--views", "1"]
    result = run_benchmark("tokenize_stage.py", "--tokenizer", tokenizer, *shape, "--batch", "2", "--rounds", "1")
    rates = result["views_per_second"]
    parts = {name: rates[name] for name in ("bare forward", "supply")}
    assert result["limit"] == min(parts, key=parts.get)
    assert result["stage_to_least"] == pytest.approx(rates["whole stage"] / min(parts.values()), rel=0.02)
    assert result["stage_to_shared_cores"] > result["stage_to_least"]


def test_dalle_beside_the_loop_runs_in_its_own_precision():
    """Turns are taken inside the loop's autocast, where bfloat16 is in hardware."""
    benchmark = runpy.run_path(str(ROOT / "benchmarks/pretrain_speed.py"), run_name="pretrain_speed")
    product = torch.ones(4, 4, requires_grad=True)
    seen = []

    class Tokenizer:
        def encode(self, views):
            seen.append((views @ product).dtype)
            return torch.zeros(2, 2, 2)

    step = object.__new__(benchmark["OnlineStep"])
    step._bare, step._tokenizer, step._views = (lambda token_ids: len(token_ids)), Tokenizer(), torch.ones(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert step() == 2
        with benchmark["autocast"]("bf16", torch.device("cpu"))():
            assert (torch.ones(4, 4) @ product).dtype == torch.bfloat16
        with torch.no_grad():
            product += 1
        with benchmark["autocast"]("bf16", torch.device("cpu"))():
            assert (torch.ones(4, 4) @ product)[0, 0] == 8  # not the weights of the step before
    assert seen == [torch.float32]


def test_training_of_a_segmentation_is_timed_beside_its_step_and_its_reader():
    small = ["image.img_size=16", "image.patch_size=4", "model.embed_dim=24", "model.depth=2", "model.num_heads=2"]
    small += ["train.global_batch_size=2", "reader.num_workers=1"]
    settings = [word for setting in small for word in ("--set", setting)]
    options = ["--image-side", "36", "--steps", "1", "--rounds", "1"]
    result = run_benchmark("segmentation_training.py", *options, *settings)
    rates = result["images_per_second"]
    assert set(rates) == {"bare step", "reader alone", "whole loop"}
    assert result["ratios"]["whole loop / bare step"] == pytest.approx(
        rates["whole loop"] / rates["bare step"], rel=0.01, abs=0.001
    )
