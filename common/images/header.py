"""What the header of an image says, as a record that every reader fills; reading it is `facts.py`."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

BANDS = "bands"
"""Colours of an image whose channels may mean anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a header says of an image."""

    format: str
    """As people write it: "JPEG", "PNG", "WebP", "TIFF"."""
    width: int
    """In pixels, as stored; where being turned is part of the format, upright."""
    height: int
    """The same."""
    bits: int
    """Of a value, as far as they are used: 12 of 16; of a palette those of its colours."""
    channels: int
    """Of colour, or bands, without that of transparency; 3 for a palette."""
    colours: str
    """"RGB", "grey", "black and white", "palette", "CMYK" or `BANDS`."""
    has_alpha: bool = False
    """Whether pixels may be transparent."""
    is_float: bool = False
    """Whether values are of floating point."""
    has_range: bool = True
    """Whether its type says which values are black and white: floats have no such ends, unless the format says so."""
    num_frames: int = 1
    """Of an animation, pages of a document, slices, moments."""
    transpose: Image.Transpose | None = None
    """How it is to be turned to stand upright."""
    series: str = ""
    """Of DICOM, a hash of what names the series: equal for its slices, and nothing that tells of a patient."""

    @property
    def megapixels(self) -> float:
        """Width x height, in millions."""
        return self.width * self.height / 1e6

    @property
    def depth(self) -> str:
        """Bits as they are counted and written: "8", "12", "32 float"."""
        return f"{self.bits} float" if self.is_float else str(self.bits)
