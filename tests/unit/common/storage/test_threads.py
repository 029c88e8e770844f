import threading
from concurrent.futures import CancelledError

import pytest

from beit.common.errors import ResumableStop
from beit.common.storage.threads import Threads


def test_items_are_worked_on_at_once_and_come_in_order() -> None:
    meeting = threading.Barrier(3)

    def meet(item: int) -> int:
        meeting.wait(60)
        return -item

    assert list(Threads(3).imap(meet, range(6))) == [0, -1, -2, -3, -4, -5]


def test_no_more_items_are_taken_than_asked_for() -> None:
    taken: list[int] = []
    results = Threads(2).imap(lambda item: item, (taken.append(item) or item for item in range(100)), ahead=5)
    assert next(results) == 0
    assert len(taken) == 5


def test_a_stop_is_heard_while_an_item_hangs_and_nobody_waits_for_it() -> None:
    begun, never = threading.Event(), threading.Event()

    def hang(item: int) -> None:
        begun.set()
        never.wait(600)

    def check() -> None:
        if begun.is_set():
            raise ResumableStop("enough")

    pool = Threads(1)
    waiting = pool.submit(hang, 1)
    begun.wait(60)
    behind = pool.submit(hang, 2)
    with pytest.raises(ResumableStop):
        list(pool.imap(hang, range(3), check_stop=check))
    pool.close(seconds=0.01)
    assert not waiting.done()
    with pytest.raises(CancelledError):
        behind.result(60)
    never.set()


def test_closing_waits_for_what_has_begun_and_ends_the_threads() -> None:
    pool, begun, may_end = Threads(2, "closing"), threading.Event(), threading.Event()
    future = pool.submit(lambda: begun.set() or may_end.wait(60))
    begun.wait(60)
    threading.Timer(0.05, may_end.set).start()
    pool.close()
    assert future.result(0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("closing")]
