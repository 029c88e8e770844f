"""Names of segmentation heads of other projects, and what beit calls them.

Known are UPerNet as mmsegmentation and the released BEiT name it, and Hugging Face's BeitForSemanticSegmentation,
Data2VecVisionForSemanticSegmentation and UperNetForSemanticSegmentation, with the names in files and in live modules.
"""

from __future__ import annotations

import re

from beit.finetune.segmentation.model import HEAD_PREFIXES

_RENAMES = [
    (r"^fpn\.fpn1\.conv_transpose1\.", "neck.fpn1.0."),
    (r"^fpn\.fpn1\.normalization\.", "neck.fpn1.1."),
    (r"^fpn\.fpn1\.conv_transpose2\.", "neck.fpn1.3."),
    (r"^fpn\.fpn2\.", "neck.fpn2.0."),
    (r"^fpn([12])\.", r"neck.fpn\1."),
    (r"\.psp_modules\.blocks\.(\d)\.conv\.", r".psp_modules.\1.1."),
    (r"^decode_head\.psp_bottleneck\.", "decode_head.bottleneck."),
    (r"\.convolution\.", ".conv."),
    (r"\.(batch_norm|normalization)\.", ".bn."),
    (r"^(decode_head|auxiliary_head)\.classifier\.", r"\1.conv_seg."),
]  # fmt: skip
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_CONV = rf"(conv\.weight|(bn|gn)\.{_NORM})"
_KNOWN = re.compile(
    rf"neck\.fpn(1\.[013]|2\.0)\.{_NORM}"
    rf"|decode_head\.(psp_modules\.\d\.1|bottleneck|fpn_bottleneck|(lateral|fpn)_convs\.\d|fpn_conv)\.{_CONV}"
    rf"|decode_head\.norms\.\d\.(weight|bias)|auxiliary_head\.convs\.0\.{_CONV}"
    r"|(decode_head|auxiliary_head)\.conv_seg\.(weight|bias)"
)


def segmentation_name(name: str) -> str:
    """Return what ours calls a tensor of a segmentation head; other names stay."""
    if not name.startswith((*HEAD_PREFIXES, "fpn1.", "fpn2.", "fpn.")):
        return name
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def is_segmentation_name(name: str) -> bool:
    """Tell a tensor of a segmentation head that is known."""
    return _KNOWN.fullmatch(name) is not None
