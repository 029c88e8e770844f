"""Target onnx: one `model.onnx` for any batch size, and `preprocessing.json`, which says what goes in and comes out.

Inputs and outputs are float32 whatever the weights are. Initialisers keep the official names of their tensors, and the
metadata hold all that the two documents say.

Legend: B = batch, N = patches, D = embed_dim, V = visual words, C = classes, S = img_size.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from beit import __version__
from beit.common.errors import RunFailed, require
from beit.common.storage.documents import write_json
from beit.common.vit.description import encoder_config_to_json
from beit.common.vit.features import pool_features
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.prediction.classifier import class_probabilities
from beit.finetune.segmentation.artifact import segmentation_info
from beit.finetune.segmentation.heads import resize
from beit.finetune.segmentation.model import Segmenter
from beit.finetune.weights.export.exporter import Run, import_library
from beit.finetune.weights.export.preprocessing import IMAGES, MASK, decoding_note, describe
from beit.finetune.weights.export.source import ExportOptions, ExportSource, build_model, probe_mask
from beit.finetune.weights.import_exported import ONNX_FILE

logger = logging.getLogger(__name__)

LIBRARY = "onnxruntime"
MODEL_FILE, WEIGHTS_FILE, DESCRIPTION_FILE = ONNX_FILE, f"{ONNX_FILE}.data", "preprocessing.json"
OPSET = 20
"""The first with a Gelu; onnxruntime has it since 1.17."""
MAX_FILE_BYTES = 2_000_000_000
"""Of weights in the model's own file; protobuf ends at 2 GiB."""
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_NAMES_IN_NOTE = 6
_COUNTER = "num_batches_tracked"
"""Of a batch norm, for its training."""


def write(source: ExportSource, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the model and its description; weights of more than 2 GB stand in `model.onnx.data` beside the model."""
    require(
        options.dtype != "bfloat16",
        "--dtype bfloat16: onnxruntime has no such convolution on a processor; give float16 or float32",
    )
    _require_libraries()
    described = describe(source) | {"model": MODEL_FILE, "opset": OPSET, "weights": options.dtype}
    with _quiet():
        model = _tidied(_exported(_Graph(source, options.torch_dtype), source, tuple(described["outputs"])))
    model.metadata_props.update(_metadata(described, source))
    files = [*_save(model, folder), folder / DESCRIPTION_FILE]
    write_json(files[-1], described)
    return files


def notes(source: ExportSource) -> list[str]:
    """Return what was left out, and what belongs together."""
    found = []
    if left_out := _left_out(source):
        rest = len(left_out) - _NAMES_IN_NOTE
        listed = ", ".join(left_out[:_NAMES_IN_NOTE]) + (f" and {rest} more" if rest > 0 else "")
        found.append(f"left out, since no output needs them: {len(left_out)} tensors, {listed}")
    return found + decoding_note(source.config)


def reload(folder: Path, source: ExportSource) -> Run:
    """Open the model in onnxruntime; the first image is run by itself, the others in one batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run_batch(images: Tensor, mask: Tensor) -> list[Tensor]:
        inputs = {IMAGES: images.numpy()} | ({MASK: mask.numpy()} if source.what == "masked" else {})
        found = [torch.from_numpy(output) for output in session.run(names, inputs)]
        if any(output.shape[0] != images.shape[0] for output in found):
            raise RunFailed("the ONNX model answers a batch of another size than it is given; nothing was written")
        return found

    def run(images: Tensor) -> dict[str, Tensor]:
        mask = probe_mask(source)
        alone, together = run_batch(images[:1], mask[:1]), run_batch(images, mask)
        return {
            name: torch.cat([first, others[1:]]) for name, first, others in zip(names, alone, together, strict=True)
        }

    return run


class _Graph(nn.Module):
    """What is exported: our model with float32 at both ends, and what belongs behind it; see `preprocessing.py`."""

    def __init__(self, source: ExportSource, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.config, self.dtype = build_model(source), source.config, dtype
        self.norm: nn.Module | None = None
        self.lm_head: nn.Module | None = None
        if source.what == "masked":
            shape, parts = source.config.architecture, source.state
            self.lm_head = nn.Linear(shape.embed_dim, len(parts["lm_head.weight"]))
            if not shape.final_norm:  # else it is the encoder's, and done
                self.norm = nn.LayerNorm(shape.embed_dim, eps=shape.layer_norm_eps)
            self.load_state_dict({name: parts[name] for name in self.state_dict() if name in parts}, strict=False)
        self.to(dtype).eval()

    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> tuple[Tensor, ...]:
        """Map images (B, C, S, S) float32 to the outputs in the order of `describe`."""
        model, images = self.model, images.to(self.dtype)
        if isinstance(model, ImageClassifier):
            logits = model(images).float()
            return logits, class_probabilities(logits, multi_label=self.config.multi_label)
        if isinstance(model, Segmenter):
            logits = model(images).float()
            return logits, resize(logits, (self.config.architecture.img_size,) * 2).softmax(1)
        features = model.forward_features(images, bool_masked_pos)
        if self.lm_head is None:
            return features.float(), pool_features(features)
        hidden = features if self.norm is None else self.norm(features)
        return features.float(), pool_features(features), self.lm_head(hidden[:, 1:]).float()


def _left_out(source: ExportSource) -> list[str]:
    """Return the tensors that no output depends on."""
    prefixes = ["pixel_head.", "auxiliary_head."]
    prefixes += [] if source.what == "masked" else ["mask_token", "lm_head."]
    if source.what == "segmenter":
        blocks = segmentation_info(source.config, origin=source.path).head.blocks or ()
        prefixes += ["norm."]
        prefixes += [f"blocks.{i}." for i in range(max(blocks) + 1, source.config.architecture.depth)]
    elif source.what == "encoder" and not source.config.architecture.final_norm:
        prefixes += ["norm.", "fc_norm."]
    return sorted(name for name in source.state if name.startswith(tuple(prefixes)) or name.endswith(_COUNTER))


def _require_libraries() -> None:
    lacking = [name for name in _NEEDED if import_library(name) is None]
    require(not lacking, f"--to onnx needs {', '.join(lacking)}; pip install {' '.join(lacking)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter prints and warns of, which is about its own inside, from the user."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _exported(graph: _Graph, source: ExportSource, names: tuple[str, ...]) -> Any:
    """Return the model of onnx_ir, as torch makes it, with an open batch size."""
    shape, batch = source.config.architecture, Dim("batch")
    # Two images at least: torch takes a size of 1 for a constant.
    arguments: tuple[Tensor, ...] = (torch.zeros(2, shape.in_chans, shape.img_size, shape.img_size),)
    sizes: dict[str, Any] = {IMAGES: {0: batch}}
    if source.what == "masked":
        arguments += (torch.zeros(2, shape.num_patches, dtype=torch.bool),)
        sizes[MASK] = {0: batch}
    program = torch.onnx.export(
        graph,
        arguments,
        dynamo=True,
        dynamic_shapes=sizes,
        input_names=list(sizes),
        output_names=list(names),
        opset_version=OPSET,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program.model


def _tidied(model: Any) -> Any:
    """Fold what is constant besides the weights, give these their official names, and drop traces of this machine."""
    common = importlib.import_module("onnx_ir.passes.common")
    optimizer = importlib.import_module("onnxscript.optimizer")
    weights = set(model.graph.initializers)
    common.InlinePass()(model)
    # onnxruntime folds weights itself; folded here they would be lost, to whoever reads the file, under their names.
    optimizer.fold_constants_ir(model, should_fold=lambda node: False if _uses(node, weights) else None)
    for one in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.CommonSubexpressionEliminationPass(),
        common.ClearMetadataAndDocStringPass(),  # each node has the Python stack that it is from
        common.NameFixPass(),
    ):
        one(model)
    for value in list(model.graph.initializers.values()):
        value.name = value.name.removeprefix("model.")
    return model


def _uses(node: Any, weights: set[str]) -> bool:
    return any(value is not None and value.name in weights for value in node.inputs)


def _save(model: Any, folder: Path) -> list[Path]:
    ir, file = importlib.import_module("onnx_ir"), folder / MODEL_FILE
    if sum(value.const_value.nbytes for value in model.graph.initializers.values()) <= MAX_FILE_BYTES:
        ir.save(model, file)
        return [file]
    ir.save(model, file, external_data=WEIGHTS_FILE)
    logger.info("%s and %s belong together: one ONNX file ends at 2 GB", MODEL_FILE, WEIGHTS_FILE)
    return [file, folder / WEIGHTS_FILE]


def _metadata(described: Mapping[str, Any], source: ExportSource) -> dict[str, str]:
    """Return texts, of which those that are no word or number are JSON."""
    scale = described["preprocessing"]
    values = {
        "producer": f"beit {__version__}",
        "img_size": str(described["img_size"]),
        "mean": json.dumps(scale["mean"]),
        "std": json.dumps(scale["std"]),
        "preprocessing": json.dumps(dict(described)),
        "beit": json.dumps(encoder_config_to_json(source.config)),
        "provenance": json.dumps(source.config.provenance),
    }
    return values | ({"class_names": json.dumps(described["class_names"])} if "class_names" in described else {})
