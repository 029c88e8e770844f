"""A data set and transforms for reader tests. They stand here because workers must be able to import them."""

import errno
import os
import signal
import time

import numpy as np

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.storage.place import RemoteError
from beit.common.storage.samples import Record
from beit.pretrain.store_dataset import view_index

SEED = 3


class FakeDataset:
    """Samples named by shard and rank, with one byte of content; `bad` ids cannot be read."""

    def __init__(self, sizes, *, num_views=4, bad=()):
        self.shard_sizes = np.array(sizes, dtype=np.int64)
        self.num_views = num_views
        self.index_sha256 = "fake"
        self.default_lanes = 1
        self.bad = frozenset(bad)
        self.expected = []

    def window_shards(self, wanted):
        return wanted

    def expect_shards(self, shard_ids):
        self.expected.append(("shards", list(shard_ids)))

    def expect_rows(self, rows):
        self.expected.append(("rows", rows.positions.tolist()))

    def sample_id(self, shard_id, rank):
        return f"{shard_id:03d}/k{rank}"

    def fetch(self, shard_id, rank, epoch):
        shard, key = f"{shard_id:03d}", f"k{rank}"
        if f"{shard}/{key}" in self.bad:
            raise BadSample("truncated", "made so by the test")
        return Record(
            key=key,
            shard=shard,
            epoch=epoch,
            view_index=view_index(SEED, epoch, shard, key, self.num_views),
            image_bytes=bytes([shard_id, rank % 256]),
        )


def to_pixels(record):
    """An image of 2 x 2 px that tells the sample, and the processes that made it."""
    pixels = np.frombuffer(record.image_bytes, np.uint8)
    return {"images": np.broadcast_to(pixels[:, None, None], (2, 2, 2)), "pids": os.getpid(), "parents": os.getppid()}


def to_variable(record):
    """An environment variable of the process that reads."""
    return {"variable": int(os.environ["BEIT_TEST_VARIABLE"])}


def to_pixels_and_label(record):
    """A decoded image, (height, width, 3) uint8."""
    return {"images": np.asarray(decode_image(record.image_bytes)), "labels": record.label}


class AtSample:
    """Do something in the worker when it meets one sample."""

    def __init__(self, sample_id, action, then=to_pixels):
        self.sample_id = sample_id
        self.action = action
        self.then = then

    def __call__(self, record):
        if record.sample_id == self.sample_id:
            self.action()
        return self.then(record)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(3600)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_with_server():
    os.kill(os.getppid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def fill_shared_memory():
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_8_1_1>: No space left on device (28)")


def open_too_many():
    raise OSError(errno.EMFILE, "Too many open files")


def lose_server():
    raise RemoteError("https://h/002.tar cannot be reached")


def dawdle():
    time.sleep(2)


def raise_value_error():
    raise ValueError("no such colour")


def raise_input_error():
    raise InputError("shard 000 is gone; put it back")


def signal_group_member():
    """What a scheduler does to every process of the group, the fork server included."""
    os.kill(os.getppid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
