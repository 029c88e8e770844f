"""Which images and masks a run uses, and what the masks mean, as settings; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from beit.common.config import at_least, checked, within
from beit.common.errors import require


@checked("data")
class MaskDataConfig:
    """Which images and masks are used, and what the masks mean."""

    val: str | None = None
    """Images with masks to evaluate on; left out, DATA's own folder val, if DATA has the folders train and val, else
    nothing is evaluated."""
    layout: Literal["auto", "folders", "voc", "ade20k", "cityscapes", "camvid", "mapillary", "coco"] = "auto"
    """How DATA is laid out; auto finds it and says what it found."""
    classes: str | None = None
    """File that names the classes: a JSON list of names, a JSON object of values and names, a table (CSV) with the
    columns value or r, g, b, and name, or one name per line. Needed for masks that hold colours. Left out, the file
    classes.json, class_dict.csv or label_colors.txt beside the data, or what the data themselves say, or numbers."""
    ignore: Annotated[tuple[int, ...], within("[0, 65535]")] = (255,)
    """Values of masks that mean no class."""
    reduce_zero_label: bool = False
    """Whether the value 0 means no class and every other is one too high, as in ADE20K."""
    skip_unpaired: bool = False
    """Leave out images without a mask and masks without an image, and say how many, instead of refusing them."""
    image_column: str | None = None
    """Column of the images in Parquet; left out, the one called image."""
    mask_column: str | None = None
    """Column of the masks in Parquet; left out, the one called annotation, mask, label or segmentation."""
    mask_member: str | None = None
    """What follows the key in a mask's name in tars; left out, seg.png or mask.png."""
    coco_background: bool | None = None
    """COCO: whether the pixels that no annotation covers are a class "background" (true) or mean nothing (false). Left
    out, a class for polygons and run lengths, nothing for panoptic masks."""
    num_val_images: Annotated[int | None, at_least(1)] = None
    """Measure on this many of them only, spread evenly, always the same; left out, on all."""
    num_labels: Annotated[int | None, at_least(1)] = None
    """Train on this many images only; left out, on all."""
    label_fraction: Annotated[float | None, within("(0, 1]")] = None
    """Train on this share of the images only; left out, on all."""
    subset_seed: int = 0
    """Chooses the images of such a subset; apart from train.seed, so that runs can share a subset."""

    def __post_init__(self) -> None:
        """Check what excludes each other."""
        count, fraction = self.num_labels, self.label_fraction
        require(
            count is None or fraction is None,
            f"data.num_labels ({count}) and data.label_fraction ({fraction}) exclude each other; give one of them",
        )
