"""The tokenizer that a token store was made with, loaded again: to audit tokens, or to draw them."""

from __future__ import annotations

from pathlib import Path

import torch

from beit.common.errors import InputError
from beit.common.store_schema import TokenizerInfo
from beit.common.tokenizer import CompileMode, DTypeSetting, Tokenizer, load_tokenizer
from beit.common.tokenizer_plugin import is_import_name


def load_store_tokenizer(
    info: TokenizerInfo,
    *,
    given: str | None = None,
    device: str | torch.device = "cpu",
    dtype: DTypeSetting = "auto",
    compile_encoder: CompileMode = "auto",
    need_decoder: bool = False,
) -> Tokenizer:
    """Load the tokenizer of a store, and make sure that it is that one.

    A name out of a file never decides which code runs: a `module:Class` is imported only if the user gave it.

    Args:
        info: From the store.
        given: What the user names instead, because the tokenizer has moved or is code; None takes the store's name.
        device: Where to compute.
        dtype: Of the forward pass.
        compile_encoder: See `load_tokenizer`.
        need_decoder: Whether `decode` must work.
    Raises:
        InputError: it cannot be loaded, is another one, or is code that the user has not named.
    """
    name = given or info.name
    if given is None and is_import_name(name) and not Path(name).exists():
        raise InputError(
            f"the store was made with tokenizer {name}, which is code; if you trust it, name it yourself: "
            f"--tokenizer {name}"
        )
    tokenizer = load_tokenizer(
        name, device=device, dtype=dtype, compile_encoder=compile_encoder, need_decoder=need_decoder
    )
    if tokenizer.fingerprint != info.fingerprint:
        raise InputError(
            f"tokenizer {name} (fingerprint {tokenizer.fingerprint[:12]}) is not the one the store was made with "
            f"({info.fingerprint[:12]}); restore that one, or name it with --tokenizer"
        )
    return tokenizer
