"""The README of a trained tokenizer: what it is, what it was made from, and what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.common.files import write_atomic
from beit.tokenize.tokenizer_config import TokenizerTrainConfig

_GREY = "It sees the luma of colour images, and decodes to grey."
_LICENCE = "(yours to fill in: of these weights, and of the images they were trained on)"


def tokenizer_card(file: Path, config: TokenizerTrainConfig, training: Mapping[str, Any], *, fingerprint: str) -> None:
    """Write the card.

    Args:
        file: The README.md to write.
        config: Settings of the training.
        training: As in the tokenizer's config.json: source, step, total_steps, metrics.
        fingerprint: Of the tokenizer.
    """
    model, data, metrics = config.model, config.data, training["metrics"]
    lines = [
        "# Image tokenizer",
        "",
        f"A discrete VAE: each {model.downsampling} x {model.downsampling} px square of an image becomes one of "
        f"{model.vocab_size} visual words. Fingerprint `{fingerprint}`.",
        *([_GREY] if model.channels == 1 else []),
        "",
        "    from beit.common.tokenizer import load_tokenizer",
        f'    token_ids = load_tokenizer("{file.parent}").encode(images)',
        "",
        f"- Network: width {model.width}, {model.num_blocks} residual blocks each way, code vectors of "
        f"{model.code_dim}; trained by {model.reconstruction}.",
        f"- Training: `beit tokenizer train {training['source']} {file.parent.name}`, {time.strftime('%Y-%m-%d')}, "
        f"step {training['step']} of {training['total_steps']}, {_average(config)}; all settings: `config.toml`.",
        f"- Data: {training['num_train_images']} images of `{training['source']}`, in views of {data.view_size} px, "
        f"{data.crops_per_image} pieces of {data.crop_size} px of each; {training['num_held_out_images']} further "
        "images were held out.",
        f"- Licence: {_LICENCE}",
    ]
    if metrics:
        lines += [
            "",
            "## Measured",
            "",
            f"On {metrics['eval_images']:.0f} of the held-out images, one view of each; `reconstruction.png` shows "
            "some, as the latest evaluation saw them:",
            "",
            "| what | value |",
            "| --- | --- |",
            f"| reconstruction | {metrics['eval_psnr']:.2f} dB |",
            f"| mean colour of each square, for comparison | {metrics['eval_block_mean_psnr']:.2f} dB |",
            f"| different words used | {metrics['eval_words_used']:.0f} of {model.vocab_size} |",
            f"| perplexity of the words | {metrics['eval_perplexity']:.0f} |",
        ]
    write_atomic(file, ("\n".join(lines) + "\n").encode())


def _average(config: TokenizerTrainConfig) -> str:
    decay = config.train.ema_decay
    return "the weights as they were then" if decay is None else f"weights averaged with decay {decay}"
