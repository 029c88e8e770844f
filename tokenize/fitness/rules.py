"""The rules of the verdicts: which numbers are judged, the thresholds, and where each threshold comes from.

"Measured" figures are those of `mini` on 256 photographs, one view of 112 px each (2026-11-25); it is the only
tokenizer that pre-training was tried with here, so they mark what works, not where it ends. "Arbitrary" thresholds are
where a careful engineer would look twice. The sentences are `verdicts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "look", "bad"]
LEVEL_NAMES: dict[Level, str] = {"good": "good", "look": "look at this", "bad": "bad"}

MAX_NEW_WORD_PROBABILITY = 0.01
"""Chance of a new word above which the sample is too small for unused words to prove anything. Evenly used words give
0.7 % at 5 tokens per word and 37 % at 1; the place on that curve is arbitrary."""
MIN_FIT_TOKENS_PER_WORD = 20.0
"""Tokens per word below which a small gain from neighbours proves nothing: `mini` gained 2.3 % at 5 tokens per word,
5.3 % at 11, 8.7 % at 21 and 13 % at 50 (measured on 64 to 600 photographs). An arbitrary place on that curve."""
LOW_GAIN, HIGH_GAIN, COPYING_GAIN = 0.01, 0.4, 0.6
"""Shares of a token's bits that its two neighbours tell; arbitrary. Measured: 0.078 for `mini`, 0.19 for a dVAE of 512
words after three minutes of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Two thresholds for one number. Where `good` is above `bad`, more is better."""

    key: str
    """Name in the JSON."""
    title: str
    """Name on the page."""
    good: float
    """From here on all is well."""
    bad: float
    """From here on something is wrong; between the two, somebody should look."""
    what: str
    """The number, in words; completes "good if ..."."""
    unit: str = ""
    """"%", "dB" or "bits"."""
    origin: str
    """Where the thresholds come from."""

    def level(self, value: float) -> Level:
        """Judge a number."""
        sign = 1.0 if self.good > self.bad else -1.0
        if sign * value >= sign * self.good:
            return "good"
        return "bad" if sign * value < sign * self.bad else "look"

    def as_text(self) -> str:
        """Spell the rule out."""
        scale = 100.0 if self.unit == "%" else 1.0
        unit = f" {self.unit}" if self.unit else ""
        more = self.good > self.bad
        return (
            f"good if {self.what} is at {'least' if more else 'most'} {scale * self.good:g}{unit}, bad "
            f"{'below' if more else 'above'} {scale * self.bad:g}{unit}; {self.origin}"
        )


RULES = {
    rule.key: rule
    for rule in (
        Rule(
            key="usage",
            title="Use of the vocabulary",
            good=0.9,
            bad=0.6,
            unit="%",
            what="the share of words used, of those that evenly used words would show in as many tokens,",
            origin="arbitrary; measured: 99.5 % for mini",
        ),
        Rule(
            key="balance",
            title="Balance of the words",
            good=0.5,
            bad=0.2,
            unit="%",
            what="the perplexity, as a share of the vocabulary,",
            origin="arbitrary; measured: 82 % for mini",
        ),
        Rule(
            key="border",
            title="Border of the picture",
            good=0.5,
            bad=1.5,
            unit="bits",
            what="the difference in entropy between border and inner tokens",
            origin="arbitrary; measured: 0.19 bits for mini",
        ),
        Rule(
            key="copies",
            title="Copies of neighbours",
            good=0.25,
            bad=0.5,
            unit="%",
            what="the share of tokens that repeat a neighbour",
            origin="arbitrary; measured: 8 % for mini",
        ),
        Rule(
            key="reconstruction",
            title="Reconstruction",
            good=1.0,
            bad=0.0,
            unit="dB",
            what="the distance to the mean colour of each square",
            origin="0 dB needs no learning (but 24 bits per token); 1 dB is arbitrary; measured: 2.3 dB for mini",
        ),
        Rule(
            key="shift",
            title="Shift by one pixel",
            good=0.4,
            bad=0.15,
            unit="%",
            what="the share of tokens that stay",
            origin="arbitrary; measured: 45 % for mini",
        ),
        Rule(
            key="whole_shift",
            title="Shift by one token",
            good=0.75,
            bad=0.5,
            unit="%",
            what="the share of tokens that move along",
            origin="arbitrary; measured: 81 % for mini",
        ),
        Rule(
            key="jpeg",
            title="JPEG re-encoding",
            good=0.75,
            bad=0.5,
            unit="%",
            what="the share of tokens that stay",
            origin="arbitrary; measured: 87 % for mini",
        ),
        Rule(
            key="precision",
            title="Number formats",
            good=0.95,
            bad=0.9,
            unit="%",
            what="the share of tokens that stay",
            origin="`beit verify --audit` alarms below 90 %; measured: 98 % for mini in bfloat16",
        ),
    )
}


def percent(share: float) -> str:
    """Write a share: "38 %", "4.7 %", "97.9 %", "0.41 %"; near 0 and 100 with more digits, so that it reads neither."""
    value = 100.0 * share
    distance = min(abs(value), abs(100.0 - value))
    if distance == 0.0:
        return f"{value:.0f} %"
    if distance < 0.01:
        return "below 0.01 %" if value < 50.0 else "above 99.99 %"
    digits = 0 if distance >= 10.0 else (1 if distance >= 1.0 else 2)
    return f"{value:.{digits}f} %"
