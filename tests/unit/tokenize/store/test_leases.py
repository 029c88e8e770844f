import json
import os
import signal
from multiprocessing import get_context

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from beit.common.errors import ResumableStop
from beit.common.storage.place import place_of
from beit.tokenize.store.leases import LeaseLost, Leases


class Place:
    """What leases are kept in, and a look at it from outside."""

    def __init__(self, url):
        self.files = place_of(str(url))
        self.file_system, self.root = fsspec.core.url_to_fs(str(url))
        self.file_system.makedirs(self.root, exist_ok=True)

    def read(self, name):
        return self.file_system.cat_file(f"{self.root}/.lease.{name}")

    def write(self, name, content):
        self.file_system.pipe_file(f"{self.root}/.lease.{name}", content)

    def names(self):
        return sorted(path.rsplit("/", 1)[-1] for path in self.file_system.ls(self.root, detail=False))

    def held_elsewhere(self, name, **changes):
        """The lease of a process of another machine, which cannot be asked whether it lives."""
        content = {"nonce": "n", "machine": "other", "host": "node7", "pid": 5, "started": 1.0, "beat": 0, **changes}
        self.write(name, json.dumps(content).encode())


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    if request.param == "folder":
        return Place(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs.clear()
    return Place("memory://bucket/store")


def die_holding(store, name):
    with Leases(place_of(str(store))) as leases:
        assert leases.claim(name)
        os.kill(os.getpid(), signal.SIGKILL)


def test_one_of_two_gets_a_lease_and_the_other_after_it(place):
    with Leases(place.files) as first, Leases(place.files) as second:
        assert first.claim("a") and not second.claim("a") and second.claim("b")
        assert not second.is_free("a")
        first.release("a")
        assert second.is_free("a") and second.claim("a")
    assert not place.names()


def test_the_lease_of_a_killed_process_is_taken_at_once(tmp_path, caplog):
    caplog.set_level("INFO")
    process = get_context("fork").Process(target=die_holding, args=(tmp_path, "a"))
    process.start()
    process.join()
    assert (tmp_path / ".lease.a").exists()
    with Leases(place_of(str(tmp_path))) as leases:
        assert leases.claim("a")
        leases.require_held("a")
    assert f"taking over a from process {process.pid}" in caplog.text


def test_a_process_id_that_was_given_again_is_no_holder(place):
    with Leases(place.files) as leases:
        leases.claim("a")
        content = json.loads(place.read("a"))
    place.write("a", json.dumps(content | {"started": content["started"] - 1000}).encode())
    with Leases(place.files) as leases:
        assert leases.claim("a")


def test_a_lease_of_another_machine_expires_only_when_it_stands_still(place):
    place.held_elsewhere("a")
    with Leases(place.files, expiry_seconds=0.0) as leases:
        assert not leases.claim("a")  # seen for the first time
        place.held_elsewhere("a", beat=1)
        assert not leases.claim("a")  # it moved
        assert leases.claim("a")
    place.held_elsewhere("a")
    with Leases(place.files, expiry_seconds=1000.0) as leases:
        assert not any(leases.claim("a") for _ in range(3))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"[" * 50_000, b'{"pid": "x"}', b"null", b"\xff", b'{"nonce": 1}']
)
def test_what_is_no_lease_is_taken_when_it_stood_still(place, content):
    place.write("a", content)
    with Leases(place.files, expiry_seconds=-1.0) as leases:
        assert not leases.claim("a")
        assert leases.claim("a")


def test_signs_of_life_change_the_file_and_keep_its_owner(place):
    with Leases(place.files, beat_seconds=0.001) as leases:
        leases.claim("a")
        seen = {place.read("a")}
        while len(seen) < 3:
            seen.add(place.read("a"))
        leases.require_held("a")
    assert not place.names()


def test_who_stood_still_and_lost_its_lease_learns_it_and_leaves_the_new_one_alone(tmp_path):
    place = Place(tmp_path)
    with Leases(place.files, beat_seconds=0.001) as leases:
        leases.claim("a")
        place.held_elsewhere("a")
        with pytest.raises(LeaseLost, match="a was taken over"):
            leases.require_held("a")
        leases.release("a")
    assert "node7" in str(place.read("a"))


def test_a_lease_retmp_pathd_between_judging_and_taking_is_put_back(tmp_path, monkeypatch):
    place = Place(tmp_path)
    place.held_elsewhere("a")
    rename = os.rename

    def overtaken(source, target):
        place.held_elsewhere("a", nonce="faster")
        rename(source, target)

    with Leases(place.files, expiry_seconds=-1.0) as leases:
        leases.claim("a")  # seen for the first time
        monkeypatch.setattr(os, "rename", overtaken)
        assert not leases.claim("a")
    assert place.names() == [".lease.a"]
    assert "faster" in str(place.read("a"))


def test_a_lease_behind_a_url_that_was_replaced_meanwhile_is_left_alone(place):
    place.held_elsewhere("a", nonce="faster")
    assert not (place.files / ".lease.a").take(b"own", lambda content: b"slower" in content)
    assert b"faster" in place.read("a")


def test_a_storage_that_overwrites_what_is_there_still_shows_who_came_last(monkeypatch):
    place = Place("memory://bucket/careless")
    careless = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda *arguments, mode="": careless(*arguments))
    with Leases(place.files) as first, Leases(place_of("memory://bucket/careless")) as second:
        assert first.claim("a") and not second.claim("a")  # looked before it wrote
        read, looks = second._read, []
        second._read = lambda name: read(name) if looks else looks.append(name)
        assert second.claim("a")  # looked at the same moment
        with pytest.raises(LeaseLost):
            first.require_held("a")
        second.require_held("a")


def test_waiting_ends_when_somebody_asks_to_stop_and_says_for_whom_it_waits(place, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("beit.tokenize.store.leases._LONGEST_WAIT_SECONDS", 0.0)
    place.held_elsewhere("pack")
    checks = []

    def raise_at_the_third():
        checks.append(1)
        if len(checks) == 3:
            raise ResumableStop("stopped")

    with (
        Leases(place.files, raise_at_the_third) as leases,
        pytest.raises(ResumableStop),
        leases.step("pack"),
    ):
        pass
    assert "waiting for pack (process 5 on node7)" in caplog.text


def test_what_killed_processes_left_is_swept_and_own_leases_are_not(place):
    place.held_elsewhere("a")
    place.write("b.dead.1234", b"")
    with Leases(place.files) as leases:
        leases.claim("store")
        leases.sweep()
        assert place.names() == [".lease.store"]
