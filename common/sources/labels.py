"""What labels say: whole numbers, names, and when two of them mean one class.

Classes are matched by name. The name of a number is its text, names are compared in one Unicode form, and `007` is the
number 7. A label that stands for several classes has their names with `LABEL_SEPARATOR` between them. Where labels
stand in a file is known by its kind (`loose_files.py`, `lists.py`, `tars.py`, `parquet_layout.py`). Here, too: choosing
samples so that classes keep their shares, or become equally frequent. N samples, C classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import require
from beit.common.rng import CounterRng

LABEL_SEPARATOR = "|"
"""Between the classes of an image that has several: to the data layer they are one label, such as `beach|sunset`."""
UNLABELLED = -1
"""The number that stands for no label in Parquet files and tars, as Hugging Face marks the rows of test sets."""
Int64Array = NDArray[np.int64]
_NUMBER = re.compile(r"-?[0-9]{1,300}")
_EXAMPLES = 5
_MOST_SHOWN, _MOST_SHOWN_LETTERS = 12, 160
"""Classes that are all named at the start of a training, and letters of their names; arbitrary, two lines."""


def number_of(text: str) -> int | None:
    """Return the whole number that a text writes, or None."""
    return int(text) if _NUMBER.fullmatch(text) else None


def meant_number(text: str) -> int | None:
    """Return the whole number that a text means: `3`, `03`, `+3`, `3.0` as tables with gaps have it; None for names."""
    return number_of(re.sub(r"^\+(?=[0-9])|\.0+$", "", text))


def are_numbers(label: str) -> bool:
    """Tell whether all classes that a label stands for are whole numbers."""
    return all(number_of(name) is not None for name in label.split(LABEL_SEPARATOR))


def as_label(text: str) -> int | str:
    """Return the number that a text writes; the text itself if that is more than a number, such as `007` or a name."""
    number = number_of(text)
    return number if number is not None and str(number) == text else text


def stored_label(label: int | str | None) -> int | None:
    """Return what a token store keeps of a label: a class number from 0 up to 64 bits, or nothing."""
    number = number_of(label) if isinstance(label, str) else label
    return number if number is not None and 0 <= number < 1 << 63 else None


def one_form(name: str) -> str:
    """Return a class name as names are compared: in Unicode's composed form. Copies from a Mac are decomposed."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """Sort class names: by number if all are whole numbers, else as text."""
    texts = sorted(names)
    if all(number_of(name) is not None for name in texts):
        texts.sort(key=lambda name: number_of(name) or 0)
    return texts


def split_label(label: str) -> list[str]:
    """Return the classes that a label stands for."""
    return [name.strip() for name in label.split(LABEL_SEPARATOR) if name.strip()]


def joined_label(names: Iterable[object], origin: str) -> str | None:
    """Return the one label that stands for several classes, whatever their order; None for none.

    Args:
        names: Class names, or numbers that then serve as names.
        origin: Where they stand, for messages.
    """
    texts = set()
    for name in names:
        text = str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""
        require(
            text != "" and LABEL_SEPARATOR not in text,
            f"{origin} lists the class {name!r}; classes must be names without {LABEL_SEPARATOR!r}, or numbers",
        )
        texts.add(text)
    return LABEL_SEPARATOR.join(sorted(texts)) or None


def spellings(names: Iterable[str]) -> list[list[str]]:
    """Return the names that mean one number, such as `1` and `01`, number by number."""
    found: dict[int, list[str]] = {}
    for name in names:
        number = meant_number(name)
        if number is not None:
            found.setdefault(number, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def require_distinct(names: Iterable[str], origin: str) -> None:
    """Refuse classes that mean one number: whether they are one class or two is not ours to guess."""
    same = spellings(sorted(names))
    require(
        not same,
        f"{origin} has the classes {' and '.join(same[0]) if same else ''}, which are one number; write them alike, or "
        "call them by names",
    )


class ClassMatcher:
    """Finds names of data among the classes of a model.

    Args:
        known: Of the model, in the order of its class ids.
        numbers: What each number means, where a file says so (`class_names.py`). Names of data are then also found
            where the model's classes are numbers.
    """

    def __init__(self, known: Sequence[str], numbers: Mapping[int, str] | None = None) -> None:
        self._ids = {one_form(name).strip(): class_id for class_id, name in enumerate(known)}
        counts = Counter(map(meant_number, known))
        self._by_number = {
            number: class_id
            for class_id, name in enumerate(known)
            if (number := meant_number(name)) is not None and counts[number] == 1
        }
        self._by_name = {
            name: self._by_number[number] for number, name in (numbers or {}).items() if number in self._by_number
        }

    def find(self, name: str) -> int | None:
        """Return the class id of a name, or None where no class is called so."""
        name = one_form(name).strip()
        if name in self._ids:
            return self._ids[name]
        if name in self._by_name:
            return self._by_name[name]
        number = meant_number(name)
        return None if number is None else self._by_number.get(number)


def listed(names: Sequence[str]) -> str:
    """Return the first few names for a message."""
    return ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")


def all_listed(names: Sequence[str]) -> str:
    """Return how many classes there are and what they are called: all of few, of many the first."""
    shown = ", ".join(names)
    if len(names) > _MOST_SHOWN or len(shown) > _MOST_SHOWN_LETTERS:
        shown = listed(names)
    return f"{len(names)} classes: {shown}"


def unknown_classes(name: str, unknown: Sequence[str], known: Sequence[str]) -> str:
    """Say that data have classes which a model has not, and the way out where one side has numbers and the other names.

    Args:
        name: Of the data.
        unknown: Their classes that the model lacks.
        known: The model's.
    """
    are_unknown, are_known = (all(meant_number(one) is not None for one in side) for side in (unknown, known))
    if are_unknown == are_known:
        return f"{name} has classes that the model does not know ({listed(unknown)}); it knows {listed(known)}"
    numbers = f"the classes of {name} are numbers" if are_unknown else "the model's are numbers"
    names = f"the classes of {name} are names" if are_known else "the model's are names"
    first, second = (numbers, names) if are_unknown else (names, numbers)
    return (
        f"{first} ({listed(unknown)}), {second} ({listed(known)}); say which number is which in a file of names: "
        "--class-names FILE, in a training data.class_names=FILE; the config.json of a model is one, too"
    )


def apportion(class_counts: Int64Array, total: int) -> Int64Array:
    """Divide `total` samples among classes in proportion to their counts.

    Largest remainders; every class that has samples gets one as long as `total` covers all such classes.

    Args:
        class_counts: Samples there are, int64 (C,).
        total: Samples wanted, at most the sum of `class_counts`.
    Returns:
        Samples per class, int64 (C,), summing to `total`.
    """
    exact = class_counts * (total / class_counts.sum())
    present = class_counts > 0
    least: Int64Array = present.astype(np.int64) * int(total >= np.count_nonzero(present))
    counts: Int64Array = np.maximum(np.floor(exact).astype(np.int64), least)
    while (missing := total - int(counts.sum())) != 0:
        open_classes = counts < class_counts if missing > 0 else counts > least
        gap = np.where(open_classes, (exact - counts) * np.sign(missing), -np.inf)
        counts[int(np.argmax(gap))] += np.sign(missing)
    return counts


def subset_size(total: int, *, num_labels: int | None, fraction: float | None, of: str) -> int:
    """Return how many of `total` samples are to be kept.

    Args:
        total: Samples there are.
        num_labels: How many; excludes `fraction`.
        fraction: Share of them.
        of: What they are and where, for messages.

    Raises:
        InputError: both are given or none, or there are not so many.
    """
    require(
        (num_labels is None) != (fraction is None),
        f"give either num_labels ({num_labels}) or fraction ({fraction}), not both or none",
    )
    if fraction is not None:
        require(0 < fraction <= 1, f"fraction ({fraction}) must be in (0, 1]")
        num_labels = max(1, round(fraction * total))
    assert num_labels is not None
    require(1 <= num_labels <= total, f"num_labels ({num_labels}) must be in [1, {total}], the number of {of}")
    return num_labels


def draw_subset(labels: Int64Array, total: int, seed: int) -> Int64Array:
    """Choose `total` samples, balanced by label; samples without a label count as one more class.

    A larger subset of the same seed contains a smaller one, up to the rounding of `apportion`.

    Args:
        labels: Class id of every sample, int64 (N,).
        total: Samples wanted, in [0, N].
        seed: Another seed chooses other samples.
    Returns:
        Indices of the chosen samples, ascending, int64 (total,).
    """
    classes, members = np.unique(labels, return_inverse=True)
    counts = apportion(np.bincount(members, minlength=len(classes)).astype(np.int64), total)
    by_class = np.split(np.argsort(members, kind="stable"), np.cumsum(np.bincount(members))[:-1])
    chosen = [
        samples[CounterRng(seed, "label subset", int(label)).permutation(len(samples))[:count]]
        for label, samples, count in zip(classes, by_class, counts, strict=True)
    ]
    return np.asarray(np.sort(np.concatenate(chosen)), dtype=np.int64)


def repetitions(labels: Int64Array, seed: int) -> Int64Array:
    """Return how often to list each sample so that all classes are as frequent as the largest one.

    Args:
        labels: Class id of every sample, int64 (N,).
        seed: Chooses the samples that are listed once more, where a class does not fit a whole number of times.
    Returns:
        int64 (N,), at least 1 each.
    """
    classes, members = np.unique(labels, return_inverse=True)
    counts = np.bincount(members)
    times: Int64Array = (counts.max() // counts)[members].astype(np.int64)
    by_class = np.split(np.argsort(members, kind="stable"), np.cumsum(counts)[:-1])
    for label, samples, count in zip(classes, by_class, counts, strict=True):
        rest = int(counts.max() % count)
        times[samples[CounterRng(seed, "balance", int(label)).permutation(len(samples))[:rest]]] += 1
    return times
