"""What a tokenisation came to, in numbers, and as the table a user sees at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from beit.common.pages.numbers import percent
from beit.common.pages.tables import aligned
from beit.common.progress import format_rate
from beit.tokenize.shards.encode import Stopwatch


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """What one rank did."""

    num_images: int
    """Images tokenised in this run."""
    num_shards: int
    """Shards tokenised in this run."""
    num_shards_kept: int
    """Shards that an earlier run had finished."""
    seconds: float
    """Spent tokenising, without start and packing."""
    watch: Stopwatch
    """Where the time went."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeSummary:
    """What a store holds, and what this run did for it."""

    store: str
    """Folder or URL of the store."""
    is_complete: bool
    """False if another run takes the store apart again, because it found a damaged shard."""
    views: int
    """K, views per image."""
    num_shards: int = 0
    """Shards of the store."""
    num_samples: int = 0
    """Usable images."""
    num_held_out: int = 0
    """Of those, kept from pre-training."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Images without tokens, by reason."""
    num_blank: int = 0
    """Tiles that were left out because they are next to one colour."""
    is_cut: bool = False
    """Whether one image may have become several samples."""
    token_bytes: int = 0
    """Size of all token tars."""
    reports: tuple[RankReport, ...] = ()
    """One per rank that this process knows of."""

    @property
    def num_images_done(self) -> int:
        """Images tokenised in this run."""
        return sum(report.num_images for report in self.reports)

    @property
    def num_shards_kept(self) -> int:
        """Shards that an earlier run had finished."""
        return sum(report.num_shards_kept for report in self.reports)

    @property
    def images_per_second(self) -> float:
        """Rate of this run over all ranks; 0 if there was nothing to do."""
        seconds = max((report.seconds for report in self.reports), default=0.0)
        return self.num_images_done / seconds if seconds > 0 else 0.0

    @property
    def limit(self) -> str:
        """The resource that a rank spent most of its time on."""
        encoding = sum(report.watch.encoding_seconds for report in self.reports)
        waiting = sum(report.watch.waiting_seconds for report in self.reports)
        total = encoding + waiting
        if total == 0:
            return "decoding"
        if encoding >= waiting:
            return f"the tokenizer ({percent(encoding / total)} of the time)"
        return f"decoding and cropping ({percent(waiting / total)} of the time); more workers or --short-side may help"

    @property
    def outcome(self) -> str:
        """What became of the store, in one line."""
        if not self.is_complete:
            return f"{self.store} is not finished yet"
        if self.num_images_done or not self.num_shards_kept:
            return f"wrote {self.store}"
        return f"{self.store} is finished, nothing was left to do; for other images, views or sizes name another store"

    def as_table(self) -> str:
        """Return the lines a user sees at the end."""
        if not self.is_complete:
            return f"{self.store}: another run does a damaged shard again and finishes the store"
        what = "samples" if self.is_cut else "images"
        rows = [
            ("store", self.store),
            ("shards", f"{self.num_shards} ({self.num_shards_kept} were finished before)"),
            (
                "samples" if self.is_cut else "images",
                f"{self.num_samples} usable, {self.num_held_out} of them held out",
            ),
            ("views", self._views_text()),
            (
                "token files",
                f"{self.token_bytes / 1e6:.1f} MB" if self.token_bytes >= 1e6 else f"{self.token_bytes / 1e3:.0f} kB",
            ),
        ]
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
            rows.insert(3, ("skipped", f"{self.skipped.total()} {what}: {reasons}"))
        if self.num_blank:
            rows.insert(3, ("left out", f"{self.num_blank} tiles next to one colour (tile_min_std)"))
        if self.num_images_done:
            views_per_second = self.images_per_second * self.views
            rate = f"{format_rate(self.images_per_second)} images/s" + (
                f", {format_rate(views_per_second)} views/s" if self.views else ""
            )
            rows += [("rate", rate), ("limited by", self.limit)]
        return aligned(rows, align="<")

    def _views_text(self) -> str:
        if not self.views:
            return "none (packed and indexed only)"
        if self.views == 1:
            return "1 per image, seen in every epoch of a training"
        return f"{self.views} per image; a training of E epochs uses each E/{self.views} times"
