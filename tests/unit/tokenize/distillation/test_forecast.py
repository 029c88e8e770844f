import logging
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.forecast.hardware import named, this_machine
from beit.common.training.outlook import foretelling
from beit.tests.distillation import settings
from beit.tokenize.distillation.forecast import distilled_model, forecast_distillation
from beit.tokenize.distillation.model import DistillationModel
from beit.tokenize.distillation.train import train_distilled
from beit.tokenize.encoders import TeacherCost
from beit.tokenize.kinds import TeacherChoice


@pytest.mark.parametrize("changes", [{}, {"model": {"depth": 3}, "decoder": {"depth": 3}}])
def test_what_is_trained_is_counted_exactly(changes: dict[str, dict[str, int]]) -> None:
    small = settings(**changes)
    counted = distilled_model(small, TeacherCost(dim=24, img_size=16), this_machine())
    model = DistillationModel(small.model, decoder_depth=small.decoder.depth, teacher_dim=24)
    assert counted.trained == sum(weight.numel() for weight in model.parameters())
    held = counted.trained + sum(value.numel() for value in model.buffers())
    assert counted.parameters == pytest.approx(held, rel=0.02)


def test_the_published_recipe_takes_hours_of_eight_a100_and_a_larger_teacher_longer() -> None:
    from beit.tokenize.distillation.config import DistillationConfig

    card = named("A100", num_devices=8)
    base = TeacherCost(dim=768, img_size=224, parameters=86_000_000, flops=35e9)
    found = forecast_distillation(DistillationConfig(), base, num_images=1_281_167, hardware=card)
    assert found.steps == pytest.approx(250_200, rel=0.01)
    assert found.seconds is not None and 3 * 3600 < found.seconds < 48 * 3600
    larger = TeacherCost(dim=1024, img_size=224, parameters=304_000_000, flops=120e9)
    slower = forecast_distillation(DistillationConfig(), larger, num_images=1_281_167, hardware=card)
    assert slower.seconds is not None and slower.seconds > found.seconds
    assert slower.memory.total - found.memory.total > 4 * 218e6
    assert slower.checkpoint_bytes - found.checkpoint_bytes < 3 * 4 * 2e6, "no checkpoint holds the teacher"


def test_it_is_said_before_the_first_step_and_refused_where_it_cannot_fit(
    source: str, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = TeacherChoice(str(encoder), None)
    with monkeypatch.context() as small, pytest.raises(InputError, match="needs about .* of memory"):
        small.setattr(foretelling, "free_memory_bytes", lambda device: 0)
        small.setattr(foretelling, "_held_bytes", lambda device: 10**6)
        train_distilled(settings(), source, tmp_path / "words", teacher=choice)
    assert not (tmp_path / "words").exists()
    with caplog.at_level(logging.INFO):
        train_distilled(settings(train={"steps": 2}), source, tmp_path / "words", teacher=choice)
    lines = caplog.messages
    first = next(number for number, line in enumerate(lines) if line.startswith("expected: about"))
    made = next(number for number, line in enumerate(lines) if line.startswith("tokenizer of"))
    assert (
        lines[made]
        == "tokenizer of 0.0 M parameters: 16 words, one per 4 x 4 px of 16; 10 training and 2 held-out images"
    )
    assert first < made and any(line.startswith("measured: ") for line in lines)
