"""The frozen features of labelled images for linear probe and k-NN, computed once and kept in the run directory.

    RUN/features/train.safetensors, val.safetensors   blocks (L, n, 2 D) float32, labels (n,) int64

The metadata of a file say what it was computed from; where that differs, it is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from beit.common.encoder import load_encoder
from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.reading.contents import contents_of
from beit.common.sources.index import LabelledIndex
from beit.common.storage.files import atomic_path, remove_stale, sha256_file
from beit.common.storage.tensor_check import write_safetensors
from beit.common.vit.description import WEIGHTS_FILE, EncoderConfig, find_encoder
from beit.common.vit.features import Features, extract_features
from beit.common.vit.vit import VisionTransformer
from beit.finetune.artifact import StartingPoint
from beit.finetune.config import RANDOM_ENCODER, FinetuneConfig
from beit.finetune.evaluation.evaluate import crop_pct_of, evaluation_loader, with_progress
from beit.finetune.segmentation.config import SegmentationConfig

logger = logging.getLogger(__name__)

FORMAT = "beit-features 2"


class FrozenEncoder:
    """An encoder whose features are measured, on the CPU; its shape and normalisation are those of `starting_point`."""

    def __init__(self, config: FinetuneConfig | SegmentationConfig, start: StartingPoint) -> None:
        assert config.encoder is not None
        self.normalization = start.normalization
        self.fingerprint = f"random {config.train.seed} {start.architecture}"
        if config.encoder == RANDOM_ENCODER:
            torch.manual_seed(config.train.seed)
            self.model = VisionTransformer(start.architecture).eval()
            return
        self.fingerprint = sha256_file(find_encoder(config.encoder) / WEIGHTS_FILE)
        # As it was pre-trained, shared position table included, and not as fine-tuning would reshape it.
        shape = start.architecture
        self.model = load_encoder(config.encoder, img_size=shape.img_size, in_chans=shape.in_chans)


def frozen_features(
    encoder: FrozenEncoder, index: LabelledIndex, file: Path, *, config: FinetuneConfig, world: World
) -> Features:
    """Return the features of all images of `index` that can be read, CLS beside the mean of the patches.

    They are kept in `file`. The encoder is moved to the device of `world`, which is one rank, if it is needed.
    """
    _require_memory(encoder, index, config.probe.max_feature_gib)
    identity = _identity(encoder, index, config)
    kept = _read(file, identity)
    if kept is not None:
        logger.info("%s: %d images, kept from an earlier run", file, len(kept.labels))
        return kept
    wanted = _description(encoder)
    loader = evaluation_loader(index, wanted, world=world, settings=config.evaluation, reader=config.reader)
    batches = with_progress(loader, index, world=world, description=f"features of {index.name}")
    try:
        features = extract_features(
            encoder.model.to(world.device),
            batches,
            device=world.device,
            normalization=encoder.normalization,
            pooling="cls_mean",
            num_images=len(index),
        )
    except ValueError as error:
        raise InputError(f"{index.name} has no image that can be read ({error})") from None
    file.parent.mkdir(exist_ok=True)
    remove_stale(file.parent)
    with atomic_path(file) as temporary:  # straight from the tensors, of which a second copy may not fit
        write_safetensors(temporary, features._asdict(), metadata={"identity": identity})
    return features


def _description(encoder: FrozenEncoder) -> EncoderConfig:
    return EncoderConfig(
        architecture=encoder.model.config,
        normalization=encoder.normalization,
        task="classification",
        pooling="cls_mean",
    )


def _identity(encoder: FrozenEncoder, index: LabelledIndex, config: FinetuneConfig) -> str:
    """Hash everything that decides the features."""
    crop_pct = crop_pct_of(config.evaluation, _description(encoder))
    images = contents_of(index)
    parts = [FORMAT, encoder.fingerprint, images, encoder.model.config.img_size, crop_pct, encoder.normalization]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(file: Path, identity: str) -> Features | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            if (stored.metadata() or {}).get("identity") != identity:
                return None
            return Features(stored.get_tensor("blocks"), stored.get_tensor("labels"))
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("%s is damaged (%s); computing the features again", file, error)
        return None


def _require_memory(encoder: FrozenEncoder, index: LabelledIndex, max_gib: float) -> None:
    shape = encoder.model.config
    gib = len(index) * shape.depth * 2 * shape.embed_dim * 4 / 2**30  # float32
    if gib > max_gib:
        raise InputError(
            f"the features of {len(index)} images from {shape.depth} blocks take {gib:.1f} GiB, above "
            f"probe.max_feature_gib ({max_gib:g}); use fewer images with data.num_labels, or raise it"
        )
