"""Whether the range of values that a model was trained with misses the files that it is given from Python."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from PIL import Image

from beit.common.images.decoding import Decoding
from beit.common.images.missed import Drawn, missed_by
from beit.common.storage.paths import normalise
from beit.common.storage.place import place_of
from beit.common.vit.transform import ImageLike

logger = logging.getLogger(__name__)

_MOST_FILES = 8
"""That are decoded twice for it."""


class RangeCheck:
    """Look at the first files that a model is given; say it where its range leaves next to nothing of them.

    Args:
        decoding: Of the model. With one of another kind than given or found values nothing is looked at.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._num_left = _MOST_FILES

    def look(self, images: Sequence[ImageLike]) -> None:
        """Look at those of some images that are paths or URLs, as long as few were looked at."""
        if not self._num_left or not self._decoding.value_range.needs_values:
            return
        paths = [str(image) for image in images if not isinstance(image, Image.Image)][: self._num_left]
        self._num_left -= len(paths)
        drawn = [Drawn(path, place_of(normalise(path)).read) for path in paths]
        missed = missed_by(drawn, self._decoding)
        if missed is not None:
            logger.warning("%s", missed.warning(option=""))
