"""What `beit import` says: what was found, what was taken, left out and made up, and which of it is a guess."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from beit.common.vit.description import EncoderConfig
from beit.finetune.weights.import_files import ForeignWeights
from beit.finetune.weights.import_findings import Findings
from beit.finetune.weights.import_names import NamedTensors

_MILLION = 1e6
_PARTS = {
    "patches and tokens": ("patch_embed.", "cls_token", "mask_token"),
    "positions": ("pos_embed", "rel_pos_bias."),
    "blocks": ("blocks.",),
    "last norm": ("norm.", "fc_norm."),
    "head": ("head.", "lm_head.", "neck.", "decode_head.", "auxiliary_head."),
}
"""Of an encoder file, and how the names of their tensors begin."""
_DEPTH = 2
"""Parts of a name that tell what was left out."""
_LISTED = 6


def describe_import(config: EncoderConfig, named: NamedTensors, foreign: ForeignWeights, findings: Findings) -> str:
    """Return what was found, for the user."""
    shape = config.architecture
    size = _parameters(named.tensors) / _MILLION
    guess = " (a guess)" if findings.num_heads.option else ""
    positions = "absolute positions" if shape.use_abs_pos_emb else "no absolute positions"
    lines = [
        f"{named.family}: {shape.depth} blocks of {shape.embed_dim} channels, {shape.num_heads} heads{guess}, "
        f"{shape.img_size} px in patches of {shape.patch_size}, {positions}, relative positions {shape.pos_bias}, "
        f"{size:.1f} M parameters, {_head(config)}",
        *_said(named, foreign, findings, config.pooling),
        *(f"sha256 {digest}  {name}" for name, digest in foreign.sha256.items()),
        *_account(named, foreign),
    ]
    return "\n".join(lines)


def _head(config: EncoderConfig) -> str:
    if config.segmentation is not None:
        return f"a UPerNet of {len(config.segmentation['classes']['names'])} classes"
    if config.class_names is not None:
        return f"a head of {len(config.class_names)} classes on {config.pooling}"
    return "no head" if config.vocab_size is None else f"a head of {config.vocab_size} visual words"


def _said(named: NamedTensors, foreign: ForeignWeights, findings: Findings, pooling: str | None) -> list[str]:
    """Return a line for everything that no shape tells."""
    lines = [
        f"heads: {findings.num_heads.value}, {findings.num_heads}",
        f"normalisation: {findings.normalization}",
    ]
    if findings.channels is not None:
        lines.append(f"channels: {findings.channels}")
    if "pos_embed" in named.tensors:
        lines.append(f"positions at another resolution: {findings.pos_resize}")
    if findings.blocks is not None:
        lines.append(f"blocks under the head: {findings.blocks}")
    lines += _which_weights(named, foreign)
    if "model_type" not in foreign.config:  # Hugging Face's config.json says all of this
        usual = ["eps 1e-6 of every LayerNorm (another: layer_norm_eps in the encoder's config.json)", "the exact gelu"]
        usual += ["square images", "patches side by side"]
        usual += ["classes on CLS"] * (pooling == "cls" and named.family != "BEiT")
        usual += ["224 px"] * ("pos_embed" not in named.tensors and named.position_table is None)
        lines.append(f"taken as usual, since tensors do not tell: {', '.join(usual)}")
    return lines


def _which_weights(named: NamedTensors, foreign: ForeignWeights) -> list[str]:
    """Say where in the file they were, whether they are an average, and what else is there."""
    container, trunk = foreign.container, named.trunk
    lines = []
    if container is not None:
        kind = "the running average" if foreign.is_average else "plain weights"
        taken = f"weights: {container!r} of the file, {kind}"
        others = ", ".join(map(repr, foreign.beside))
        lines.append(f"{taken}; the file has {others}, too; --weights ema|plain chooses" if others else taken)
    if trunk.prefix:
        taken = f"encoder: what the file has under {trunk.prefix}"
        if trunk.kind is not None and container is None or trunk.beside:
            taken += {"ema": ", a running average", "plain": ", plain weights", None: ""}[trunk.kind]
        others = ", ".join(trunk.beside)
        lines.append(f"{taken}; not {others}; --weights ema|plain or --prefix chooses" if others else taken)
    if foreign.unread:
        lines.append(f"not read, beside the weights: objects of {', '.join(foreign.unread)}")
    return lines


def _account(named: NamedTensors, foreign: ForeignWeights) -> list[str]:
    """Count tensors and parameters, by part."""
    file = foreign.tensors
    left = [name for name in named.left_out if name in file]
    everything, gone = _parameters(file), _parameters({name: file[name] for name in left})
    share = 100 * (everything - gone) / max(everything, 1)
    parts = []
    for part, starts in _PARTS.items():
        inside = {name: tensor for name, tensor in named.tensors.items() if name.startswith(starts)}
        if inside:
            parts.append(f"{part} {len(inside)} ({_parameters(inside) / _MILLION:.1f} M)")
    taken = f"taken: {len(file) - len(left)} of {len(file)} tensors of the file, {share:.1f} % of its parameters"
    lines = [f"{taken}: {', '.join(parts)}"]
    if left:
        counts = Counter(_part_of(name) for name in left)
        listed = ", ".join(f"{count} {part}" for part, count in counts.most_common(_LISTED))
        more = f", {len(counts) - _LISTED} other parts" if len(counts) > _LISTED else ""
        size = f"{gone / _MILLION:.1f} M parameters"
        lines.append(f"left out: {len(left)} tensors ({size}), such as {left[0]}: {listed}{more}")
    lines += [f"made up: {name}, {what}" for name, what in named.made_up.items()]
    return lines


def _part_of(name: str) -> str:
    """Return the beginning of a name, of which only words tell a part from another."""
    words = [word for word in name.split(".") if not word.isdigit()]
    return ".".join(words[:_DEPTH])


def _parameters(tensors: Mapping[str, Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())
