"""The stream of micro-batches on the CPU: in order, nothing fetched early, closed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.reading.contents import Watched
from beit.common.sources.index_build import build_index
from beit.common.training.data import BatchStream, HostFlag, TrainingData, padded
from beit.pretrain.config import PretrainConfig
from beit.tests.fake_dataset import FakeDataset
from beit.tests.image_files import write_folder


def test_order_laziness_and_closing() -> None:
    fetched: list[int] = []
    closed = []

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        try:
            for number in range(3):
                fetched.append(number)
                yield {"images": torch.tensor(number)}
        finally:
            closed.append(True)

    stream = BatchStream(batches(), torch.device("cpu"))
    stream.start()
    assert int(stream.next()["images"]) == 0
    stream.preload()  # nothing to overlap with on a CPU
    assert fetched == [0]
    assert [int(stream.next()["images"]) for _ in range(2)] == [1, 2]
    with pytest.raises(StopIteration):
        stream.next()
    stream.close()
    assert closed == [True]


def test_flag() -> None:
    assert HostFlag(torch.ones(())).value() == 1
    assert HostFlag(torch.zeros(())).value() == 0


def test_blank_batches_fill_up_for_ranks_that_have_more() -> None:
    class Two(World):
        def max_of(self, values: object) -> list[float]:
            return [3.0]

    world = Two(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
    given = [{"images": torch.zeros(2)}, {"bad_samples": ["one"]}, {"images": torch.zeros(1)}]
    filled = list(padded(given, len(given), {"images": torch.zeros(1)}, world))
    assert [batch["is_real"] for batch in filled] == [True, True, False]


@pytest.mark.parametrize(
    ("settings", "changed", "is_refused"),
    [((), (), True), (("data.val",), (), True), (("data.val",), ("data.val",), False), (("probe.data",), (), False)],
)
def test_edited_data_are_refused_unless_their_setting_is_free_or_was_changed_on_purpose(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: tuple[str, ...],
    changed: tuple[str, ...],
    is_refused: bool,
) -> None:
    caplog.set_level("INFO")
    folder = write_folder(tmp_path / "data", {"cat": 2, "dog": 2})

    def data() -> TrainingData:
        watched = {"pictures": Watched(build_index(folder, tmp_path / "cache"), settings)}
        world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
        return TrainingData(FakeDataset([4]), dict, PretrainConfig(), world=world, watched=watched)

    saved = data().state(3)
    data().check_resume(saved)
    assert not caplog.text
    image = folder / "dog/1.png"
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    if is_refused:
        with pytest.raises(InputError, match="checkpoint .pictures: edited images.; restore them, go on"):
            data().check_resume(saved, changed=changed)
        data().check_resume(saved, changed=changed, allow_data_change=True)
    else:
        data().check_resume(saved, changed=changed)
    assert "pictures: edited images); going on with the present ones" in caplog.text
    del saved["contents"]
    data().check_resume(saved)
    assert "says nothing of the contents of pictures" in caplog.text
