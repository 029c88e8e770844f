"""Which column of a table holds the classes: the one that the user names, or else the one that is called so."""

from __future__ import annotations

from collections.abc import Sequence

from beit.common.errors import InputError

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "cls")
"""What a column of classes is called, in any letter case; the first that is there is taken."""
HOW_TO_CHOOSE = (
    "data.label_column=NAME chooses (probe.label_column in pre-training, --label-column NAME in an evaluation)"
)


def choose_label_column(
    origin: str,
    columns: Sequence[str],
    *,
    usable: Sequence[str],
    declared: Sequence[str] = (),
    wanted: str | None = None,
) -> tuple[str | None, tuple[str, ...]]:
    """Choose the column of the classes, and say so where it could have been another.

    Args:
        origin: The table, for messages.
        columns: All, as a user should see them.
        usable: Names of those that can hold classes.
        declared: Names of those that the file itself says hold classes.
        wanted: What the user calls for.
    Returns:
        Its name, or None where the table has none; and lines for whoever uses the labels.
    """
    if wanted is not None:
        found = matching(usable, wanted)
        if found is None:
            raise InputError(f"{origin} has no column {wanted!r} that can hold classes (columns: {', '.join(columns)})")
        return found, ()
    chosen = next((found for name in LABEL_COLUMNS if (found := matching(usable, name)) is not None), None)
    if chosen is None and len(declared) == 1:
        chosen = declared[0]
    others = [name for name in usable if name != chosen and (plain(name) in LABEL_COLUMNS or name in declared)]
    if chosen is None or not others:
        return chosen, ()
    return chosen, (f"{origin}: classes are taken from column {chosen}, not {', '.join(others)}; {HOW_TO_CHOOSE}",)


def matching(names: Sequence[str], wanted: str) -> str | None:
    """Return the name that is `wanted`, as it stands or else in another letter case; None where none is."""
    return wanted if wanted in names else next((name for name in names if plain(name) == plain(wanted)), None)


def plain(name: str) -> str:
    """Return a column's name without letter case and blanks around it."""
    return name.strip().lower()
