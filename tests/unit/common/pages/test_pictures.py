"""Tables of pictures and sheets: sizes, what stands where, and colours of numbers."""

import numpy as np

from beit.common.pages.pictures import (
    DEEP,
    PALETTE,
    beside,
    contrast,
    heat_colours,
    ink_on,
    mask_patches,
    on_paper,
    picture_table,
    share_map,
    sheet,
)

RED, GREEN = (200, 0, 0), (0, 200, 0)


def plain(colour: tuple[int, int, int], side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def places_of(picture: object, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(-1))
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def test_cells_stand_in_rows_and_columns_with_their_texts_around_them() -> None:
    rows = [[plain(RED), plain(GREEN)], [None, None]]
    bare = picture_table(rows, cell_px=40)
    assert bare.size == (92, 92)
    assert places_of(bare, RED) == (0, 0, 40, 40) and places_of(bare, GREEN) == (0, 52, 40, 92)
    low = picture_table(rows, cell_px=40, cell_height_px=10)
    assert low.size == (92, 32) and places_of(low, GREEN) == (0, 52, 10, 92)
    titled = picture_table(rows, titles=["a", "b"], labels=["one\nline", "two"], cell_px=40)
    top, left, *_ = places_of(titled, RED)
    assert top == 26 and left > 20 and titled.width == bare.width + left


def test_a_row_may_end_early_whichever_it_is() -> None:
    for rows in ([[plain(RED), plain(RED)], [plain(GREEN)]], [[plain(GREEN)], [plain(RED), plain(RED)]]):
        table = picture_table(rows, titles=["a"], captions=[["x"] * len(row) for row in rows], cell_px=40)
        assert table.width == 92 and places_of(table, GREEN)[1::2] == (0, 40) and places_of(table, RED)[3] == 92


def test_only_rows_with_captions_make_room_for_them() -> None:
    rows = [[plain(RED)], [plain(GREEN)]]
    below = [
        picture_table(rows, captions=captions, cell_px=40).height for captions in ([[""], ["x"]], [["x"], ["x\ny"]])
    ]
    assert [height - picture_table(rows, cell_px=40).height for height in below] == [21, 21 + 38]


def test_a_sheet_holds_its_pictures_and_wraps_its_texts() -> None:
    body = beside([picture_table([[plain(RED)]], cell_px=60), picture_table([[plain(GREEN)]], cell_px=30)])
    assert body.size == (60 + 24 + 30, 60)
    short = sheet([body, body], heading="h", facts="facts", legend="legend")
    long = sheet([body, body], heading="h", facts="facts " * 20, legend="legend")
    assert short.width == long.width == body.width + 48 and long.height > short.height
    assert places_of(sheet([body]), RED) == (24, 24, 84, 84)


def test_numbers_have_colours_by_size_and_masks_cover() -> None:
    colours = heat_colours(np.array([-1.0, 0.0, 0.5, 1.0, 2.0])).astype(int).sum(-1)
    assert colours[0] == colours[1] < colours[2] < colours[3] == colours[4]
    assert heat_colours(np.array([0.5]), (RED, GREEN)).tolist() == [[100, 100, 0]]
    covered = mask_patches(plain(RED), np.array([[True, False], [False, False]]), colour=GREEN)
    assert covered[0, 0].tolist() == list(GREEN) and covered[3, 3].tolist() == list(RED)


def test_texts_keep_to_their_cells_and_the_sheet() -> None:
    rows = [[plain(RED), plain(RED), plain(RED)]] * 2
    long = "a/very long key of a photograph from a camera-0123-9f33a0b2c1"
    bare, captions = picture_table(rows, captions=[["x"] * 3] * 2, cell_px=80), [[long] * 3] * 2
    shown = picture_table(rows, captions=captions, titles=[long] * 3, cell_px=80)
    assert shown.width == bare.width
    pixels = np.asarray(shown).astype(int)
    gaps = np.concatenate([pixels[:, 80:92], pixels[:, 172:184]], axis=1)
    assert (gaps == 255).all(), "nothing is written between the cells"
    assert (pixels[:, :80].min(axis=(1, 2)) < 200).sum() > 160, "and something within"
    page = np.asarray(sheet([bare], heading=long, facts=f"{long} {'fact ' * 30}", legend=long.replace(" ", "")))
    assert (page[:, :24] == 255).all() and (page[:, -24:] == 255).all()


def test_labels_of_rows_are_cut_where_they_are_very_long() -> None:
    widths = [picture_table([[plain(RED)]], labels=["long " * count], cell_px=40).width for count in (1, 20, 90)]
    assert widths[0] < widths[1] <= 240 + 12 + 40 and widths[2] <= 240 + 12 + 40


def test_letters_are_read_on_every_colour_of_the_palette() -> None:
    assert all(contrast(ink_on(colour), colour) > 3.9 for colour in PALETTE)
    assert round(contrast((255, 255, 255), (0, 0, 0)), 6) == 21.0


def test_maps_of_any_number_of_classes_are_whole_pixels() -> None:
    for count in (1, 41, 1000):
        picture = share_map(np.eye(count, dtype=np.int64) * 3)
        assert picture.width == picture.height <= 1000 and picture.width % count == 0
        assert np.asarray(picture)[-1, -1].tolist() == list(DEEP)


def test_paper_shows_grey_pictures_as_colours_of_that_grey() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(on_paper(grey, 1.0), on_paper(np.repeat(grey[..., None], 3, axis=2), 1.0))
    assert on_paper(grey, 1.0).shape == (3, 3, 3)
