"""Tokenising random views of a store again and comparing: do tokens and images still belong together?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample, InputError, require
from beit.common.pages.numbers import percent
from beit.common.progress import Progress
from beit.common.rng import CounterRng
from beit.common.shards.token_store import TokenStore
from beit.common.tokenizer import DTypeSetting, choose_dtype, load_store_tokenizer
from beit.common.views import compute_canary, crop_crc
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.setup import choose_device, describe_execution, torch_threads
from beit.tokenize.shards.encode import ViewEncoder, render_token_view

MIN_AGREEMENT = 0.9
"""Alarm below this. Other devices and number formats keep 95 % and more of the tokens (BEiT's tokenizer, float32
against bfloat16); tokens of another view, or another tokenizer, agree in a few percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditResult:
    """What an audit found."""

    num_views: int
    """Views compared."""
    agreement: float
    """Share of equal token ids."""
    same_execution: bool
    """The comparison ran under the fingerprint the store was made with."""
    problems: list[str]
    """One line each."""

    def as_text(self) -> str:
        """Return the line a user sees."""
        how = "same device, number format, batch and threads" if self.same_execution else "another execution than then"
        return f"audit: {percent(self.agreement)} of the tokens of {self.num_views} views agree ({how})"


_View = tuple[NDArray[np.uint8], NDArray[np.uint16]]
"""Pixels and token ids of one view to compare."""


def audit_store(store: TokenStore, *, count: int, tokenizer: ViewEncoder | str | None = None) -> AuditResult:
    """Render and tokenise `count` random views again; the same ones every time.

    Args:
        store: Complete.
        count: Views.
        tokenizer: Instead of the one that the store names: a name or path, or the tokenizer itself.
    """
    info = store.info
    if info.tokenizer is None:
        raise InputError("--audit needs tokens, this store has none (views = 0)")
    then = info.execution
    config = TokenizeConfig(micro_batch_size=then.micro_batch_size)
    device = choose_device(config, 0)
    is_same_device = device.startswith(then.device)
    setting: DTypeSetting = then.dtype if is_same_device else "auto"  # type: ignore[assignment]
    dtype = choose_dtype(setting, device)
    is_compiled = then.is_compiled and is_same_device
    now = describe_execution(config, device=device, dtype=dtype, is_compiled=is_compiled, threads=then.threads)
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_store_tokenizer(
            info.tokenizer, given=tokenizer, device=device, dtype=dtype, compile_encoder="on" if is_compiled else "off"
        )
    else:
        require(
            tokenizer.fingerprint == info.tokenizer.fingerprint,
            f"tokenizer {info.tokenizer.name} (fingerprint {tokenizer.fingerprint[:12]}) is not the one the store was "
            f"made with ({info.tokenizer.name}, {info.tokenizer.fingerprint[:12]}); restore that one",
        )
    problems: list[str] = []
    with torch_threads(then.threads):
        equal = _compare(store, count, tokenizer, problems)
    agreement = float(np.mean(equal)) if equal else 0.0
    if equal and agreement < MIN_AGREEMENT:
        problems.append(
            f"only {percent(agreement)} of the audited tokens agree; tokens and images do not belong together"
        )
    if problems and compute_canary() != info.canary:
        problems.append("this machine decodes or resizes differently from the one that made the store; audit it there")
    return AuditResult(num_views=len(equal), agreement=agreement, same_execution=now == then, problems=problems)


def _compare(store: TokenStore, count: int, tokenizer: ViewEncoder, problems: list[str]) -> list[float]:
    """Return the share of equal tokens of each view that could be rendered."""
    size = store.info.execution.micro_batch_size
    equal: list[float] = []
    views = _draw(store, count, problems)
    with Progress(count, unit="views", description="audit") as progress:
        while batch := list(islice(views, size)):
            pixels = np.zeros((size, *batch[0][0].shape), dtype=np.uint8)
            pixels[: len(batch)] = [view for view, _ in batch]
            token_ids = tokenizer.encode(pixels)[: len(batch)].cpu().numpy()
            equal += [float((now == then).mean()) for now, (_, then) in zip(token_ids, batch, strict=True)]
            progress.update(len(batch))
    return equal


def _draw(store: TokenStore, count: int, problems: list[str]) -> Iterator[_View]:
    rng = CounterRng("audit", store.index_sha256)
    for _ in range(count):
        position, view_k = rng.integers(0, len(store) - 1), rng.integers(0, store.info.views - 1)
        shard_id, row = store.locate(position)
        name = f"{store.shards[shard_id].stem}/{store.samples(shard_id).key[row]} view {view_k}"
        try:
            yield _render(store, shard_id, row, view_k)
        except BadSample as error:
            problems.append(f"{name}: {error}")


def _render(store: TokenStore, shard_id: int, row: int, view_k: int) -> _View:
    record = store.read_record(shard_id, row, view_k)
    assert record.view is not None and record.token_ids is not None
    image = record.decode_image()
    if crop_crc(image, record.view) != int(record.view["crc_crop"]):
        raise BadSample("crop-mismatch", "the image's pixels are not those that were tokenised")
    scope = store.info.augment.jitter_scope
    return render_token_view(image, record.view, store.info.token_img_size, scope), record.token_ids
