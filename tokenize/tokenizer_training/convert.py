"""`beit tokenizer convert`: DALL-E's published files to a tokenizer directory, without running them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from beit.common.errors import InputError, require
from beit.common.runs.outputs import check_new_folder
from beit.common.storage.files import atomic_folder
from beit.common.tokenizers.dalle_files import find_part, read_part
from beit.common.tokenizers.directory import CONFIG_FILE, describe_source, read_settings, recorded_sources, save_dalle


def convert_dalle(file: Path, out: Path) -> str:
    """Write the tokenizer directory `out`, or add a decoder to one, and say what was done.

    Args:
        file: DALL-E's encoder, beside which the decoder is looked for; or a folder with it; or a decoder.
        out: New or empty; for a decoder, a directory that an encoder was converted to.
    Returns:
        Lines for the user.
    Raises:
        InputError: a file is missing or not what it should be, or `out` cannot take it. Nothing is left behind.
        OSError: `out` cannot be written.
    """
    if file.is_dir():
        found = find_part(file, "encoder")
        if found is None:
            raise InputError(f"{file} holds neither encoder.pkl nor encoder.safetensors; name the file to convert")
        file = found
    require(file.is_file(), f"{file} does not exist; name DALL-E's encoder.pkl, or the folder it lies in")
    part, tensors = read_part(file)
    source = describe_source(file)
    if part == "decoder":
        _require_room_for_decoder(file, out)
        save_dalle(out, part, tensors, source)
        return f"added the decoder ({_count(tensors)} parameters, from {file}, sha256 {source.sha256}) to {out}"
    check_new_folder("OUT", out)
    decoder_file = find_part(file.parent, "decoder")
    decoder = None if decoder_file is None else read_part(decoder_file, "decoder")[1]
    lines = [f"encoder      {_count(tensors)} parameters, from {file} (sha256 {source.sha256})"]
    with atomic_folder(out) as temporary:
        fingerprint = save_dalle(temporary, part, tensors, source)
        if decoder is not None and decoder_file is not None:
            decoder_source = describe_source(decoder_file)
            save_dalle(temporary, "decoder", decoder, decoder_source)
            lines.append(
                f"decoder      {_count(decoder)} parameters, from {decoder_file} (sha256 {decoder_source.sha256})"
            )
        else:
            lines.append("decoder      none beside it; only pictures need one, convert it to the same place later")
    lines.append(f"fingerprint  {fingerprint}")
    lines.append(f"use it with  beit tokenize SOURCE STORE --tokenizer {out}")
    return "\n".join(lines)


def _count(tensors: Mapping[str, Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors.values()):,}"


def _require_room_for_decoder(file: Path, out: Path) -> None:
    is_ours = (out / CONFIG_FILE).is_file() and read_settings(out)["architecture"] == "dall-e"
    require(is_ours, f"{file} is DALL-E's decoder, which only pictures need; convert its encoder to {out} first")
    require("decoder" not in recorded_sources(out), f"{out} has a decoder already; name another")
