"""What the tests of continued pre-training share."""

import pytest

from beit.pretrain.train import run
from beit.tests.continued import DINO, save_random, settings
from beit.tests.support import write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def first(store, tmp_path_factory):
    """A run of a few steps from random weights."""
    path = tmp_path_factory.mktemp("first") / "run"
    shape = {"size": "tiny", "embed_dim": 16, "depth": 2, "num_heads": 2}
    run(settings(model=shape, optimizer={"warmup_steps": 1}), store=store.location, run_dir=path)
    return path


@pytest.fixture
def dino(tmp_path):
    return save_random(tmp_path / "dino", DINO)
