import numpy as np
import pytest
import torch

from beit.common.sources.types import SampleRef
from beit.common.views import VIEW_DTYPE
from beit.tests.tiny_store import BlockSums
from beit.tokenize.parallel import Workers
from beit.tokenize.shards.encode import PreparedImage, Stopwatch, encode_images


def prepared(number, views):
    ref = SampleRef(f"k{number}", 0, 1, None, "x")
    pixels = np.random.default_rng(number).integers(0, 256, (views, 16, 16, 3), dtype=np.uint8)
    return PreparedImage(ref, np.zeros(views, VIEW_DTYPE), pixels)


def encode(images, tokenizer, micro_batch_size):
    return encode_images(images, tokenizer, micro_batch_size=micro_batch_size, watch=Stopwatch())


@pytest.mark.parametrize("views", [1, 3, 8, 17])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 8, 64])
def test_every_image_gets_its_own_tokens_in_order(views, micro_batch_size):
    images = [prepared(number, views) for number in range(5)]
    tokenizer = BlockSums()
    results = list(encode(images, tokenizer, micro_batch_size))
    assert [result.image.ref.key for result in results] == [image.ref.key for image in images]
    for result in results:
        expected = BlockSums().encode(result.image.token_views).numpy()
        assert result.token_ids.dtype == np.uint16 and np.array_equal(result.token_ids, expected)
    assert {shape[0] for shape in tokenizer.batch_shapes} == {micro_batch_size}
    assert len(tokenizer.batch_shapes) == -(-5 * views // micro_batch_size)


def test_no_images_give_nothing():
    assert list(encode([], BlockSums(), 4)) == []


def test_the_next_batch_is_handed_over_before_a_result_is_fetched():
    order = []

    class Result:
        def __init__(self, number, ids):
            self.number, self.ids = number, ids

        def __getitem__(self, item):
            order.append(f"fetch {self.number}")
            return self.ids[item]

    class Asynchronous(BlockSums):
        def encode(self, images):
            order.append(f"start {len(self.batch_shapes)}")
            return Result(len(self.batch_shapes), super().encode(images))

    list(encode([prepared(number, 2) for number in range(3)], Asynchronous(), 2))
    assert order == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]


def test_images_are_taken_as_needed_not_all_at_once():
    taken = []

    def images():
        for number in range(100):
            taken.append(number)
            yield prepared(number, 4)

    next(encode(images(), BlockSums(), 4))
    assert len(taken) <= 3


@pytest.mark.parametrize("wrong", [-1, 32])
def test_an_id_outside_the_vocabulary_is_an_error(wrong):
    class Wrong(BlockSums):
        def encode(self, images):
            return torch.full_like(super().encode(images), wrong)

    with pytest.raises(ValueError, match=r"must lie in \[0, 32\), its vocabulary"):
        list(encode([prepared(0, 1)], Wrong(), 1))


def test_workers_keep_the_order_and_bound_what_is_in_work():
    started = []

    def work(item):
        started.append(item)
        return item * item

    with Workers(3) as workers:
        results = workers.map(work, range(50), ahead=5)
        assert next(results) == 0
        assert max(started) <= 6
        assert list(results) == [item * item for item in range(1, 50)]


def test_an_error_in_a_worker_arrives_where_its_result_would():
    with Workers(2) as workers:
        results = workers.map(lambda item: 1 // item, [1, 1, 0, 1])
        assert [next(results), next(results)] == [1, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
