"""The health of an encoder or a fine-tuned model: description, weights, and whether they make a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from beit.common.overview.doctor.findings import Finding, fault, well
from beit.common.pages.numbers import count
from beit.common.vit.description import EncoderConfig

_NAMED = 3


def look_at_encoder(folder: Path) -> Iterator[Finding]:
    """Are its weights those that were written, finite, and all that its network has?"""
    import torch

    from beit.common.encoder import load_encoder, read_encoder_state, stated_hashes
    from beit.common.vit.description import CONFIG_FILE, find_encoder, read_encoder_config

    config, state = read_encoder_config(folder), read_encoder_state(folder)
    bad = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        yield fault(
            "encoder",
            f"{folder}: weights are not finite ({', '.join(bad[:_NAMED])}{more})",
            "train from an earlier checkpoint (--resume RUN/checkpoints/step_N) with a lower optimizer.lr",
        )
        return
    load_encoder(folder)
    weights = sum(value.numel() for value in state.values())
    is_proved = bool(stated_hashes(find_encoder(folder) / CONFIG_FILE))
    proof = "all as written" if is_proved else "all finite; of a version that wrote no hash of them"
    yield well("encoder", f"{folder}: {_described(config)}, {count(weights, 'weight')}, {proof}")


def _described(config: EncoderConfig) -> str:
    shape = config.architecture
    task = {"pretrain": "pre-trained", "classification": "a classifier", "segmentation": "a segmenter"}[config.task]
    steps = config.provenance.get("step", config.provenance.get("steps"))
    after = f" for {count(steps, 'step')}" if isinstance(steps, int) else ""
    size = f"{count(shape.depth, 'block')} of {shape.embed_dim}, {shape.img_size} px in patches of {shape.patch_size}"
    return f"{task}{after}, {size}"
