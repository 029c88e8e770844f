"""What the numbers of a plan rest on that nobody looked at or measured, each with what would tell."""

from __future__ import annotations

from beit.common.forecast.hardware import Hardware
from beit.common.forecast.words import in_gb
from beit.common.images.readers.claims import admitting
from beit.common.overview.plan.source import Found
from beit.common.pages.numbers import count


def about_images(found: Found) -> list[str]:
    """Return what is assumed of the images."""
    if not found.kind:
        size = in_gb(found.images.mean_bytes)
        return [f"images of {size} as ImageNet's, in loose files; a SOURCE in the place of a number is looked at"]
    said = []
    if not found.images.is_counted:
        said.append(
            "the number of images: some of the tars were listed, and stand for all by their sizes"
            if found.images.num_cut is None
            else "the number of tiles: the headers of some images stand for all"
        )
    if found.too_large:
        width, height = max(found.too_large, key=lambda size: size[0] * size[1])
        said.append(
            f"that {len(found.too_large)} of {count(found.num_looked_at, 'image')} looked at, of up to {width} x "
            f"{height} px, are wanted: --set tokenize.source.max_megapixels={admitting(width * height)} admits them; "
            "without it they are left out, unless --short-side or --tile decodes only parts (docs/images.md)"
        )
    return said


def about_hardware(hardware: Hardware, *, is_here: bool, is_measured: bool) -> list[str]:
    """Return what is assumed of the machines."""
    said = []
    if not is_measured:
        tells = "--measure measures it" if is_here else "on such a machine --measure measures it"
        said.append(
            f"how fast trainings and tokenizers are: {hardware.flops_source.removeprefix('assumed: ')}; {tells}"
        )
    if not is_here:
        said.append(f"{count(hardware.cores, 'core')} in each machine, and disk enough")
    if hardware.num_machines > 1:
        said.append("a network between the machines that nothing waits for")
    return said


def about_labels(*, num_classes: int, num_val: int | None) -> list[str]:
    """Return what is assumed of a fine-tuning; `num_val` where the images to validate on were not given."""
    val = "" if num_val is None else f", and {count(num_val, 'image')} to validate on"
    return [f"{num_classes} classes of the labelled images{val}"]
