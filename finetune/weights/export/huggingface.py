"""The target hf: a folder for `from_pretrained` of Hugging Face transformers, with image processor and model card.

Which class holds a model, and its names, are `huggingface_names.py`'s, pixels `image_processor.py`'s, the card
`card.py`'s. transformers is imported to read what was written, never to write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.common.errors import RunFailed
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import write_atomic
from beit.common.storage.tensor_check import read_shapes, write_safetensors
from beit.finetune.weights.export.card import model_card
from beit.finetune.weights.export.exporter import import_library
from beit.finetune.weights.export.huggingface_names import Plan, plan_export
from beit.finetune.weights.export.image_processor import (
    FILE,
    expected_pixels,
    is_grey,
    num_shifted,
    photos,
    processor_settings,
)
from beit.finetune.weights.export.preprocessing import decoding_note
from beit.finetune.weights.export.source import ExportOptions, ExportSource, probe_mask
from beit.finetune.weights.import_exported import KEY, own_facts

LIBRARY = "transformers"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
AUTO_CLASSES = {
    "encoder": "AutoModel",
    "masked": "BeitForMaskedImageModeling",  # no automatic class knows it
    "classifier": "AutoModelForImageClassification",
    "segmenter": "AutoModelForSemanticSegmentation",
}
"""What a user loads an export with."""


def write(source: ExportSource, folder: Path, options: ExportOptions) -> list[Path]:
    """Write weights, config.json, the image processor's file and a model card."""
    plan = plan_export(source)
    write_safetensors(folder / WEIGHTS, options.cast(plan.tensors), metadata={"format": "pt"})
    write_json(folder / CONFIG, plan.settings | {"dtype": options.dtype, KEY: own_facts(source.config)})
    write_json(folder / FILE, processor_settings(source))
    card = model_card(
        source,
        options,
        architecture=plan.architecture,
        auto_class=AUTO_CLASSES[source.what],
        notes=plan.notes,
    )
    write_atomic(folder / CARD, card.encode())
    return [folder / name for name in (WEIGHTS, CONFIG, FILE, CARD)]


def notes(source: ExportSource) -> list[str]:
    """Return what a user should know of the export besides how near it is."""
    found = list(plan_export(source).notes)
    if shifted := num_shifted(source):
        found.append(
            f"for {shifted} of 5 sizes of photo transformers cuts one pixel further left or up than beit: it rounds an "
            "odd margin down; compared are pixels of the same cut"
        )
    return found + decoding_note(source.config)


def expected(source: ExportSource) -> dict[str, Tensor]:
    """Return what the export is to give besides the outputs of the model."""
    return {"pixels": expected_pixels(source)}


def reload(folder: Path, source: ExportSource) -> Callable[[Tensor], dict[str, Tensor]] | None:
    """Load the folder as a user would; of masked image models, which no automatic class knows, by the class itself."""
    transformers = import_library(LIBRARY, "AutoImageProcessor", AUTO_CLASSES[source.what])
    if transformers is None:
        _check_shapes(folder, plan_export(source))
        return None
    processors, models = transformers.AutoImageProcessor, getattr(transformers, AUTO_CLASSES[source.what])
    with _quiet(transformers):
        processor = processors.from_pretrained(folder)
        model, report = models.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        raise RunFailed(f"transformers does not read the export as it is meant ({wrong}); nothing was written")
    return lambda images: _run(model.eval(), processor, images, source)


def _run(model: Any, processor: Any, images: Tensor, source: ExportSource) -> dict[str, Tensor]:
    """Return what transformers computes, by our names."""
    given = {"pixel_values": images.to(model.dtype)}
    if source.what == "masked":
        given["bool_masked_pos"] = probe_mask(source)
    outputs = model(**given, output_hidden_states=True)
    found = {"pixels": processor(images=photos(grey=is_grey(source)), return_tensors="pt").pixel_values}
    is_normed = source.config.architecture.final_norm
    if source.what == "encoder":
        found["features"] = outputs.last_hidden_state
    elif not is_normed:
        found["features"] = outputs.hidden_states[-1]
    elif source.what == "classifier":
        found["features"] = model.base_model(**given).last_hidden_state
    if source.what != "encoder":
        found["logits"] = outputs.logits
    return found


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing bars and advising; what matters of a load is in its report."""
    tools = transformers.utils.logging
    level, has_bars = tools.get_verbosity(), tools.is_progress_bar_enabled()
    tools.set_verbosity(logging.CRITICAL)
    tools.disable_progress_bar()
    try:
        yield
    finally:
        tools.set_verbosity(level)
        if has_bars:
            tools.enable_progress_bar()


def _check_shapes(folder: Path, plan: Plan) -> None:
    """Compare what lies on the disk with the plan, where nothing can load it."""
    shapes = read_shapes(folder / WEIGHTS)
    wanted = {name: tuple(tensor.shape) for name, tensor in plan.tensors.items()}
    if shapes != wanted or read_json(folder / CONFIG)["architectures"] != [plan.architecture]:
        raise RunFailed(f"{folder.name} does not hold what was written; look after the disk and export again")
