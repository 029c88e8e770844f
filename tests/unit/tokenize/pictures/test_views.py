import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from beit.common.errors import InputError
from beit.common.pages.pictures import PALETTE
from beit.common.store import open_store
from beit.tests.tiny_store import tokenize, write_folder
from beit.tokenize.commands import show_views_command
from beit.tokenize.pictures.views import load_decoder, token_colours, views_sheet
from beit.tokenize.shards.crops import CropTar


class Painter:
    """Decodes every token to one grey level."""

    def decode(self, token_ids):
        return np.kron(token_ids[..., None] * 7 % 256, np.ones((1, 4, 4, 3))).astype(np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["images", "crops"])
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tokenize(write_folder(folder / "images" / "cat", 6), folder / "store", materialize=request.param)
    return open_store(folder / "store")


def has_colour(picture, colour):
    return bool((np.asarray(picture) == colour).all(-1).any())


def test_a_sheet_has_a_block_per_image_and_a_column_per_view(store):
    two = views_sheet(store, None, num_images=2, num_views=2)
    more_images = views_sheet(store, None, num_images=3, num_views=2)
    more_views = views_sheet(store, None, num_images=2, num_views=9)  # there are 3
    decoded = views_sheet(store, Painter(), num_images=2, num_views=2)
    assert more_images.width == two.width
    assert 0 <= two.height - more_views.height < 50  # a wider sheet has fewer lines of text
    assert more_images.height - two.height > 300 and 100 < more_views.width - two.width < 300
    assert decoded.height > two.height and decoded.width == two.width


def test_views_and_tokens_are_drawn_in_the_colour_of_their_box(store):
    sheet = views_sheet(store, None, num_images=1, num_views=2)
    assert has_colour(sheet, PALETTE[0]) and has_colour(sheet, PALETTE[1])
    assert not has_colour(sheet, PALETTE[2])  # that of a third view
    for colour in token_colours(store[0]["token_ids"][0].reshape(-1)[:4]):
        assert has_colour(sheet, tuple(colour))


def test_words_have_colours_of_their_own():
    colours = token_colours(np.arange(1024).reshape(32, 32))
    assert colours.shape == (32, 32, 3) and len(np.unique(colours.reshape(-1, 3), axis=0)) > 1000
    assert np.array_equal(token_colours(np.array([5, 900, 5]))[0], colours[0, 5])


def test_a_store_without_tokens_is_refused(tmp_path):
    tokenize(write_folder(tmp_path / "images", 3), tmp_path / "store", views=0)
    with pytest.raises(InputError, match="holds no tokens"):
        load_decoder(open_store(tmp_path / "store"), None)


def test_a_tokenizer_that_cannot_be_had_leaves_the_tokens_undecoded(store, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("beit.tokenize.pictures.views.load_store_tokenizer", lose)
    assert load_decoder(store, None) is None and "not decoded: gone" in caplog.text
    with pytest.raises(InputError, match="gone"):
        load_decoder(store, "other")
    result = CliRunner().invoke(show_views_command, [store.location, "--out", str(tmp_path / "x.png"), "--rows", "1"])
    assert result.exit_code == 0 and Image.open(tmp_path / "x.png").format == "PNG"


def lose(info, *, given):
    raise InputError("gone")


def test_an_origin_that_makes_no_sense_is_refused(tmp_path):
    tokenize(write_folder(tmp_path / "images", 2), tmp_path / "store", materialize=True)
    path = tmp_path / "store/images/000000-files.tar"
    key = open_store(tmp_path / "store")[0]["key"]
    (width, height), views = CropTar(str(path), 3).origin(key)
    assert (width, height) == (48, 40) and len(views) == 3
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"size": [48, 40]', b'"size": [ 4,  4]'))
    with pytest.raises(InputError, match="lie outside its image"):
        CropTar(str(path), 3).origin(key)
    path.write_bytes(data.replace(b'"size": [48, 40]', b'"size": [ "x" ] '))
    with pytest.raises(InputError, match="does not say"):
        CropTar(str(path), 3).origin(key)
