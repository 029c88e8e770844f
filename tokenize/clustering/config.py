"""Settings of `beit tokenizer train --kind kmeans`; torch-free. What they do is `train.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from beit.common.config import at_least, checked, within
from beit.common.errors import require
from beit.common.reading.config import ReaderConfig
from beit.common.sources.config import SourceConfig
from beit.common.tokenizers.kmeans_config import Standardise
from beit.common.views import AugmentConfig


@checked("model")
class WordsConfig:
    """How many words, and what they are made of."""

    vocab_size: Annotated[int, within("[2, 65536]", "token stores hold uint16")] = 1024
    """Number of visual words."""
    patch_size: Annotated[int | None, at_least(1)] = None
    """Pixels per word along each side, of words of pixels: 8 if left out. With a teacher it is the teacher's."""
    standardise: Standardise = "channel"
    """What happens to a vector before its direction is looked at: every number has a mean subtracted and is divided by
    a deviation, both over all images (channel) or over the patch itself (patch, pixels only); or nothing."""
    anchor: Annotated[float | None, at_least(0)] = None
    """Length of a number that is added to every vector, in square roots of its length: a direction then tells strong
    patterns from weak ones, which 0 does not. Left out, 1 for pixels and 0 for a teacher's features."""


@checked("data")
class ClusteringDataConfig:
    """From an image to the patches that are clustered."""

    view_size: Annotated[int | None, at_least(1)] = None
    """Side in px to which a random view of the image is rendered, of words of pixels: 112 if left out. As the views
    that will be tokenised. With a teacher it is the side that the teacher takes."""
    patches_per_view: Annotated[int, at_least(1)] = 64
    """Patches of a view that are looked at, drawn at random; all where it has no more."""
    held_out: Annotated[float, within("(0, 0.2]")] = 0.02
    """Share of the images, chosen by a hash of their keys, that words are measured on and not made of."""
    num_eval_images: Annotated[int, at_least(1)] = 256
    """Held-out images, one view each. Where the share holds fewer, more are held out, up to a fifth of all."""


@checked("clustering")
class KMeansStepsConfig:
    """How the centres are found: batch by batch."""

    steps: Annotated[int, at_least(2)] = 100
    """Batches that move the centres; the first one starts them."""
    global_batch_size: Annotated[int, at_least(1)] = 512
    """Views per batch over all ranks."""
    micro_batch_size: Annotated[int, at_least(1)] = 64
    """Views that go through the network at a time; part of the result's last bits."""
    memory_steps: Annotated[int, at_least(1)] = 10
    """Batches that a centre is the average of, about."""
    revive_threshold: Annotated[float, at_least(0)] = 0.1
    """A word counts as unused below this share of its fair use, 1 / vocab_size; it is moved onto a patch that is badly
    represented."""
    revive_fraction: Annotated[float, within("[0, 1]")] = 0.7
    """Share of the steps after which words are left in peace, to settle."""
    painting_steps: Annotated[int, at_least(1)] = 10
    """Batches after that, from which the mean patch of every word is taken."""

    def __post_init__(self) -> None:
        require(
            self.global_batch_size % self.micro_batch_size == 0,
            f"clustering.micro_batch_size ({self.micro_batch_size}) must divide clustering.global_batch_size "
            f"({self.global_batch_size})",
        )

    @property
    def total_steps(self) -> int:
        """All batches."""
        return self.steps + self.painting_steps


@checked("checkpoint")
class ClusteringCheckpointConfig:
    """When to save what a killed run goes on from."""

    interval_steps: Annotated[int, at_least(1)] = 20
    """Batches between two checkpoints."""
    keep: Annotated[int, at_least(2)] = 2
    """Checkpoints to keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusteringRunConfig:
    """What belongs to a clustering as a whole."""

    report: bool = True
    """Write OUT/report.html, one page about the words, when they are done; takes seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusteringConfig:
    """Everything that decides the words, apart from the images and the teacher."""

    model: WordsConfig = field(default_factory=WordsConfig)
    """Words."""
    data: ClusteringDataConfig = field(default_factory=ClusteringDataConfig)
    """Pixels."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Which of them are read."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Distribution of the views, as in `beit tokenize`."""
    clustering: KMeansStepsConfig = field(default_factory=KMeansStepsConfig)
    """Centres."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Loading."""
    checkpoint: ClusteringCheckpointConfig = field(default_factory=ClusteringCheckpointConfig)
    """Saving."""
    run: ClusteringRunConfig = field(default_factory=ClusteringRunConfig)
    """Its report."""
    seed: int = 0
    """Of views, patches, and the first centres."""
