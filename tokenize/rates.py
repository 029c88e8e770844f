"""How many views this machine tokenises in a second: a few images, tokenised as `beit tokenize` would."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize

_FIRST_VIEWS = 2
"""Of each image, to find out how many may be tried, and to pay for what is done once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeRate:
    """What was measured."""

    views_per_second: float
    """Of one rank, with what decodes and crops beside it."""
    bytes_per_image: float
    """Of the token tars, on the images that were tried."""


def measure_tokenizing(config: TokenizeConfig, images: Path, folder: Path, *, seconds: float) -> TokenizeRate:
    """Tokenise a folder of images into `folder`, twice: a little, then for about so many seconds.

    Args:
        config: Settings; of the views at most as many as the time allows are made.
        images: Some images, as files.
        folder: Gets the stores; `folder`/store stays, with at least one view.
        seconds: To spend.
    """
    few = replace(config, views=min(config.views, _FIRST_VIEWS), bad_sample_budget=0.9)
    first = run_tokenize(few, str(images), folder / "first")
    rate = first.images_per_second * few.views
    affordable = math.floor(seconds * rate / max(1, first.num_samples))
    views = min(config.views, max(few.views, affordable))
    summary = run_tokenize(replace(few, views=views), str(images), folder / "store")
    return TokenizeRate(
        views_per_second=summary.images_per_second * views,
        bytes_per_image=summary.token_bytes / max(1, summary.num_samples),
    )
