import json
import os
import signal
from multiprocessing import get_context

import pytest

from beit.common.errors import ResumableStop
from beit.tokenize.lease_files import FolderLeases
from beit.tokenize.leases import LeaseLost, Leases


def lease(store, name):
    return store / f".lease.{name}"


def die_holding(store, name):
    with Leases(FolderLeases(store)) as leases:
        assert leases.claim(name)
        os.kill(os.getpid(), signal.SIGKILL)


def held_elsewhere(store, name, **changes):
    """The lease of a process of another machine, which cannot be asked whether it lives."""
    content = {"nonce": "n", "machine": "other", "host": "node7", "pid": 5, "started": 1.0, "beat": 0, **changes}
    lease(store, name).write_text(json.dumps(content))


def test_one_of_two_gets_a_lease_and_the_other_after_it(tmp_path):
    with Leases(FolderLeases(tmp_path)) as first, Leases(FolderLeases(tmp_path)) as second:
        assert first.claim("a") and not second.claim("a") and second.claim("b")
        assert not second.is_free("a")
        first.release("a")
        assert second.is_free("a") and second.claim("a")
    assert not list(tmp_path.iterdir())


def test_the_lease_of_a_killed_process_is_taken_at_once(tmp_path, caplog):
    caplog.set_level("INFO")
    process = get_context("fork").Process(target=die_holding, args=(tmp_path, "a"))
    process.start()
    process.join()
    assert lease(tmp_path, "a").exists()
    with Leases(FolderLeases(tmp_path)) as leases:
        assert leases.claim("a")
        leases.require_held("a")
    assert f"taking over a from process {process.pid}" in caplog.text


def test_a_process_id_that_was_given_again_is_no_holder(tmp_path):
    with Leases(FolderLeases(tmp_path)) as leases:
        leases.claim("a")
        content = json.loads(lease(tmp_path, "a").read_text())
    lease(tmp_path, "a").write_text(json.dumps(content | {"started": content["started"] - 1000}))
    with Leases(FolderLeases(tmp_path)) as leases:
        assert leases.claim("a")


def test_a_lease_of_another_machine_expires_only_when_it_stands_still(tmp_path):
    held_elsewhere(tmp_path, "a")
    with Leases(FolderLeases(tmp_path), expiry_seconds=0.0) as leases:
        assert not leases.claim("a")  # seen for the first time
        held_elsewhere(tmp_path, "a", beat=1)
        assert not leases.claim("a")  # it moved
        assert leases.claim("a")
    held_elsewhere(tmp_path, "a")
    with Leases(FolderLeases(tmp_path), expiry_seconds=1000.0) as leases:
        assert not any(leases.claim("a") for _ in range(3))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"[" * 50_000, b'{"pid": "x"}', b"null", b"\xff", b'{"nonce": 1}']
)
def test_what_is_no_lease_is_taken_when_it_stood_still(tmp_path, content):
    lease(tmp_path, "a").write_bytes(content)
    with Leases(FolderLeases(tmp_path), expiry_seconds=-1.0) as leases:
        assert not leases.claim("a")
        assert leases.claim("a")


def test_signs_of_life_change_the_file_and_keep_its_owner(tmp_path):
    with Leases(FolderLeases(tmp_path), beat_seconds=0.001) as leases:
        leases.claim("a")
        seen = {lease(tmp_path, "a").read_bytes()}
        while len(seen) < 3:
            seen.add(lease(tmp_path, "a").read_bytes())
        leases.require_held("a")
    assert not lease(tmp_path, "a").exists()


def test_who_stood_still_and_lost_its_lease_learns_it_and_leaves_the_new_one_alone(tmp_path):
    with Leases(FolderLeases(tmp_path), beat_seconds=0.001) as leases:
        leases.claim("a")
        held_elsewhere(tmp_path, "a")
        with pytest.raises(LeaseLost, match="a was taken over"):
            leases.require_held("a")
        leases.release("a")
    assert "node7" in lease(tmp_path, "a").read_text()


def test_a_lease_replaced_between_judging_and_taking_is_put_back(tmp_path, monkeypatch):
    held_elsewhere(tmp_path, "a")
    rename = os.rename

    def overtaken(source, target):
        held_elsewhere(tmp_path, "a", nonce="faster")
        rename(source, target)

    with Leases(FolderLeases(tmp_path), expiry_seconds=-1.0) as leases:
        leases.claim("a")  # seen for the first time
        monkeypatch.setattr(os, "rename", overtaken)
        assert not leases.claim("a")
    assert [path.name for path in tmp_path.iterdir()] == [".lease.a"]
    assert "faster" in lease(tmp_path, "a").read_text()


def test_waiting_ends_when_somebody_asks_to_stop_and_says_for_whom_it_waits(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("beit.tokenize.leases._LONGEST_WAIT_SECONDS", 0.0)
    held_elsewhere(tmp_path, "pack")
    checks = []

    def raise_at_the_third():
        checks.append(1)
        if len(checks) == 3:
            raise ResumableStop("stopped")

    with (
        Leases(FolderLeases(tmp_path), raise_at_the_third) as leases,
        pytest.raises(ResumableStop),
        leases.step("pack"),
    ):
        pass
    assert "waiting for pack (process 5 on node7)" in caplog.text


def test_what_killed_processes_left_is_swept_and_own_leases_are_not(tmp_path):
    held_elsewhere(tmp_path, "a")
    lease(tmp_path, "b.dead.1234").write_bytes(b"")
    with Leases(FolderLeases(tmp_path)) as leases:
        leases.claim("store")
        leases.sweep()
        assert [path.name for path in tmp_path.iterdir()] == [".lease.store"]
