"""The README of a trained tokenizer: what it is, what it was made from, and what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.common.files import write_atomic
from beit.tokenize.tokenizer_config import TokenizerTrainConfig


def tokenizer_card(file: Path, config: TokenizerTrainConfig, training: Mapping[str, Any], *, fingerprint: str) -> None:
    """Write the card.

    Args:
        file: The README.md to write.
        config: Settings of the training.
        training: As in the tokenizer's config.json: source, step, total_steps, metrics.
        fingerprint: Of the tokenizer.
    """
    model, metrics = config.model, training["metrics"]
    lines = [
        "# Image tokenizer",
        "",
        f"A discrete VAE: each {model.downsampling} x {model.downsampling} px square of an image becomes one of "
        f"{model.vocab_size} visual words. Fingerprint `{fingerprint}`.",
        "",
        "    from beit.common.tokenizer import load_tokenizer",
        f'    token_ids = load_tokenizer("{file.parent}").encode(images)',
        "",
        f"Trained with `beit tokenizer train {training['source']} {file.parent.name}` on "
        f"{time.strftime('%Y-%m-%d')}, step {training['step']} of {training['total_steps']}; all settings are in "
        "`config.toml`.",
    ]
    if metrics:
        lines += [
            "",
            f"On {config.data.num_eval_images} views of images from the same source:",
            "",
            "| what | value |",
            "| --- | --- |",
            f"| reconstruction | {metrics['eval_psnr']:.2f} dB |",
            f"| mean colour of each square, for comparison | {metrics['eval_block_mean_psnr']:.2f} dB |",
            f"| different words used | {metrics['eval_words_used']:.0f} of {model.vocab_size} |",
            f"| perplexity of the words | {metrics['eval_perplexity']:.0f} |",
        ]
    write_atomic(file, ("\n".join(lines) + "\n").encode())
