"""Charts: where things are drawn, in which colours, and that the same values give the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beit.common.pages.charts import (
    IntervalRow,
    Line,
    LineChart,
    _Box,
    _write,
    bar_chart,
    dot_chart,
    interval_svg,
    line_charts,
    line_svg,
)
from beit.common.pages.pictures import HIGHLIGHT, PALETTE

SIZE_PX = (560, 360)


def places_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(n, 2) rows and columns of the pixels of one colour, edges that were smoothed aside."""
    return np.argwhere(np.abs(pixels.astype(int) - colour).sum(axis=-1) < 40)


def drawn(*lines: Line, key: bool = False, columns: int = 1, width_px: int = SIZE_PX[0], **named: object) -> np.ndarray:
    chart = LineChart(lines=lines, x_name="", **named)  # type: ignore[arg-type]
    return np.asarray(line_charts([chart], chart_px=(width_px, SIZE_PX[1]), columns=columns, key=key))


def test_a_line_goes_where_its_values_are() -> None:
    pixels = drawn(Line(name="", points=[(0, 9.0), (4, 7.0)]), references=[(8.0, "half")])
    assert pixels.shape == (360, 560, 3)
    places = places_of(pixels, HIGHLIGHT)
    first, last = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
    assert first[0] < 60 and last[0] > 280  # from the top left to the bottom right
    # The reference lies between the two ends, over the whole width.
    middle = round((first[0] + last[0]) / 2)
    row = pixels[middle - 2 : middle + 3, 60:540].astype(int).sum(axis=-1)
    assert (row.min(axis=0) < 600).all()


@pytest.mark.parametrize("values", [[(0.0, 3.0)], [(5.0, 2.0), (10.0, 2.0)], [(0.0, 0.0)], [(-2.0, -1.0), (3.0, 1.0)]])
def test_single_equal_and_negative_values_are_drawn(values: list[tuple[float, float]]) -> None:
    assert len(places_of(drawn(Line(name="", points=values)), HIGHLIGHT)) > 5


def test_faint_lines_are_paler() -> None:
    pixels = drawn(Line(name="", points=[(0, 1.0), (1, 2.0)], is_faint=True))
    assert not len(places_of(pixels, HIGHLIGHT))
    assert len(places_of(pixels, (127, 184, 216))) > 5


def test_key_breaks_into_rows_and_names_every_line_once() -> None:
    lines = [
        Line(name=f"a run with a long name {number}", points=[(0, 1.0)], colour=PALETTE[number]) for number in range(4)
    ]
    plain, wide, narrow = (drawn(*lines, key=key, width_px=px) for key, px in ((False, 500), (True, 2000), (True, 500)))
    assert (wide.shape[1], narrow.shape[1]) == (2000, 500)
    assert narrow.shape[0] > wide.shape[0] > plain.shape[0]
    above = narrow[: narrow.shape[0] - plain.shape[0]]
    assert all(len(places_of(above, line.colour)) for line in lines)


def test_charts_stand_in_rows_of_equal_size() -> None:
    chart = LineChart(lines=[Line(name="", points=[(0, 1.0), (1, 2.0)])], x_name="steps")
    for count, size in ((1, (200, 150)), (2, (400, 150)), (3, (400, 300))):
        assert line_charts([chart] * count, chart_px=(200, 150), columns=2, key=False).size == size


def test_bars_are_as_high_as_their_shares() -> None:
    picture = bar_chart(np.array([0.25, 0.0, 0.5]), first=7, title="t", x_name="x", size_px=(300, 200))
    heights = (np.asarray(picture) == HIGHLIGHT).all(-1).sum(0)
    full = sorted({int(height) for height in heights if height > 5})
    assert picture.size == (300, 200) and full[-1] == pytest.approx(2 * full[0], abs=4)


def test_dots_have_their_mean_and_a_reference() -> None:
    values = np.array([[1.0, 3.0], [2.0, 6.0]])
    picture = dot_chart(values, title="t", x_name="x", size_px=(300, 200), reference=(5.0, "alike"))
    assert picture.size == (300, 200) and len(places_of(np.asarray(picture), HIGHLIGHT)) > 20


@pytest.mark.parametrize("points", [[(0, 1.0), (5, 9.0), (10, 4.0)], [(0, 9.0), (10, 1.0)], [(3, 5.0)]])
def test_what_is_ringed_is_named_beside_its_line_and_inside_the_chart(points: list[tuple[float, float]]) -> None:
    x, y = max(points, key=lambda point: point[1])
    plain = drawn(Line(name="", points=points, mark=(x, y, "")))
    named = drawn(Line(name="", points=points, mark=(x, y, "kept: 29.0 %")))
    changed = np.argwhere(np.abs(named.astype(int) - plain).sum(axis=-1) > 60)
    assert len(changed) > 100
    assert changed.min() >= 2 and (changed.max(axis=0) < np.array(plain.shape[:2]) - 2).all(), "not cut"
    under = plain[changed[:, 0], changed[:, 1]].astype(int)
    assert (np.abs(under - HIGHLIGHT).sum(axis=-1) < 40).mean() < 0.02, "its letters do not hide the line"


def test_names_of_grey_lines_and_of_rings_do_not_lie_on_each_other() -> None:
    boxes: list[tuple[float, float, float, float]] = []
    lines = [Line(name="", points=[(0, 2.0), (10, 1.0)], mark=(10, 1.0, "kept: 1.00 bits"))]
    chart = LineChart(lines=lines, x_name="", references=[(1.0, "one"), (1.02, "two"), (1.04, "three")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beit.common.pages.charts._write", recording(boxes))
        line_charts([chart], chart_px=SIZE_PX, columns=1, key=False)
    assert len(boxes) == 4
    for place, box in enumerate(boxes):
        assert not any(_Box(*box).meets(_Box(*other)) for other in boxes[:place])


def test_names_of_grey_lines_keep_away_from_lines_where_there_is_room() -> None:
    boxes: list[tuple[float, float, float, float]] = []
    rising = Line(name="", points=[(1.2, 0.13), (2.4, 0.59)], mark=(2.4, 0.59, "kept: 0.59 %"))
    pale = Line(name="", points=[(1.2, 0.065), (2.4, 0.195)], is_faint=True)
    chart = LineChart(lines=[rising, pale], x_name="", references=[(0.26, "commonest word 0.26 %")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beit.common.pages.charts._write", recording(boxes))
        line_svg(chart, size_px=(480, 300), description="")
    box = _Box(*boxes[-1])
    assert box.right < 300, "the line passes from (260, 95) to (460, 260), and leaves no such room on its right"


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [(0.2, 0.5, "20\u00a0%"), (0.2, 0.3, "22\u00a0%"), (0.001, 0.006, "0.1\u00a0%"), (0.0, 1.0, "100\u00a0%")],
)
def test_ticks_of_shares_have_as_many_digits_as_they_need(low: float, high: float, written: str) -> None:
    chart = LineChart(lines=[Line(name="", points=[(0, low), (1, high)])], x_name="", percent=True, y_range=(low, high))
    assert f"{written}</text>" in line_svg(chart, size_px=SIZE_PX, description="")


def test_the_name_of_what_is_ringed_moves_away_from_lines_that_are_close_above_and_below() -> None:
    boxes: list[tuple[float, float, float, float]] = []
    falling = Line(
        name="",
        points=[(x, 9.15 + 0.8 * (1 - x / 30) ** 2) for x in range(3, 31, 3)],
        mark=(30, 9.15, "kept: 9.15 bits"),
    )
    pale = Line(name="", points=[(20, 9.3), (27, 9.06), (30, 9.06)], is_faint=True)
    chart = LineChart(lines=[falling, pale], x_name="", references=[(9.93, "unigram")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beit.common.pages.charts._write", recording(boxes))
        line_svg(chart, size_px=(480, 300), description="")
    ringed = _Box(*boxes[0])
    assert ringed.bottom - 93 > 10, (
        "16 px above its ring, whose centre is at (460, 93): nearer it would lie on the line"
    )


def recording(boxes: list[tuple[float, float, float, float]]) -> object:
    def write(axes: object, text: str, colour: object, places: object, hidden: object, taken: list[_Box]) -> None:
        _write(axes, text, colour, places, hidden, taken)  # type: ignore[arg-type]
        boxes.append(tuple(taken[-1]))

    return write


def test_rows_of_intervals_stand_in_a_page_and_name_their_values() -> None:
    rows = [
        IntervalRow(name="A", values=[0.2, 0.24], mean=0.22, half_width=0.05),
        IntervalRow(name="B", values=[0.3], mean=0.3, half_width=None),
    ]
    named = {"x_name": "top-1", "size_px": (640, 150), "description": "top-1"}
    svg = interval_svg(rows, reference=(0.1, "chance"), percent=True, **named)
    assert "chance</text>" in svg and "A</text>" in svg and "\u00a0%</text>" in svg
    assert svg.count("var(--line0)") >= 4 and "href" not in svg and "<use" not in svg


def test_svg_refers_to_nothing_follows_the_page_and_is_always_the_same() -> None:
    lines = [Line(name="<b>", points=[(0, 1.0), (1, 2.0)], colour=PALETTE[1])]
    chart = LineChart(lines=lines, x_name="words", y_ticks={1.0: "one", 2.0: "two"})
    svg = line_svg(chart, size_px=SIZE_PX, description='"all"')
    assert svg == line_svg(chart, size_px=SIZE_PX, description='"all"')
    assert svg.startswith('<svg class="chart" viewBox="0 0 560 360" role="img" aria-label="&quot;all&quot;">')
    assert "var(--line1)" in svg and "<title>&lt;b&gt;</title>" in svg and "words</text>" in svg
    for part in ("href", "url(", "http", " id=", "<style"):
        assert part not in svg


def test_the_users_own_settings_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    line = Line(name="", points=[(0, 1.0), (1, 2.0)])
    before = drawn(line)
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black", "font.size": 30}):
        assert np.array_equal(before, drawn(line))
    assert Image.fromarray(before).size == SIZE_PX
