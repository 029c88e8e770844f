"""Ports that are taken, names nobody knows, variables of a launcher and proxies that are away are told."""

import os
import socket
from threading import Event

import pytest

from beit.common.overview.doctor.machine import network
from beit.common.overview.doctor.machine.network import check_launcher, check_ports, check_proxies
from beit.common.processes.launcher_env import LAUNCHERS, OF_ONE_RANK

OWN_NAME = network._own_name


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    names = {*OF_ONE_RANK, *network._PROXY_VARIABLES, *network._ENDPOINTS, *network._INTERFACE_VARIABLES}
    names |= {variable for launcher in LAUNCHERS for variable in (launcher.rank, launcher.world_size)}
    for name in names | {"BEIT_HTTP_HEADERS", "no_proxy", "NO_PROXY"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(network, "_own_name", lambda: [])  # whether this machine's name is known is not ours


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def the_one(findings):
    (finding,) = findings
    return finding


def test_a_shell_outside_of_jobs_is_well():
    assert the_one(check_launcher()).level == "ok"


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.name)
def test_a_shell_that_says_it_is_a_rank_is_a_fault(monkeypatch, launcher):
    monkeypatch.setenv(launcher.rank, "0")
    monkeypatch.setenv(launcher.world_size, "4")
    finding = the_one(check_launcher())
    assert finding.level == "fault" and "rank 0 of 4" in finding.what
    assert {launcher.rank, launcher.world_size} <= set(finding.mend.removeprefix("unset ").split())


def test_a_port_that_is_taken_is_a_fault_with_one_that_is_free(monkeypatch, listener):
    monkeypatch.setenv("MASTER_PORT", str(listener))
    finding = the_one(check_ports())
    assert finding.level == "fault" and f"port {listener} is taken by" in finding.what
    assert f"process {os.getpid()}" in finding.what
    free = int(finding.mend.removeprefix("export MASTER_PORT="))
    assert free != listener and not network._is_taken(free)


def test_the_usual_port_is_only_a_warning(monkeypatch, listener):
    monkeypatch.setattr(network, "_USUAL_PORT", listener)
    finding = the_one(check_ports())
    assert finding.level == "warning" and finding.mend.startswith("export MASTER_PORT=")


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_what_is_no_port_is_a_fault(monkeypatch, port):
    monkeypatch.setenv("MASTER_PORT", port)
    assert the_one(check_ports()).mend == "unset MASTER_PORT"


@pytest.mark.parametrize("variable", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_an_interface_that_is_not_here_is_a_fault(monkeypatch, variable):
    monkeypatch.setattr(network, "_USUAL_PORT", network._free_port())
    monkeypatch.setenv(variable, "eth99")
    finding = the_one(check_ports())
    assert finding.level == "fault" and "eth99" in finding.what and finding.mend == f"unset {variable}"
    for name in ("lo", "=lo", "^docker0") if variable.startswith("NCCL") else ("lo", "eth99,lo"):
        monkeypatch.setenv(variable, name)
        assert the_one(check_ports()).level == "ok"


def test_a_loopback_that_is_down_is_a_fault(monkeypatch):
    def refuse(*_, **__):
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(network.socket, "create_server", refuse)
    finding = next(iter(check_ports()))
    assert finding.level == "fault" and "ip link set lo up" in finding.mend


def test_names_that_nobody_knows_are_told(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(network, "_has_address", lambda name: False)
    monkeypatch.setenv("MASTER_ADDR", "node-7")
    address, own = network._own_name()
    assert address.level == "fault" and "node-7" in address.what and own.level == "warning"


def test_no_proxy_is_well():
    assert the_one(check_proxies()).what == "none"


def test_a_proxy_that_does_not_answer_is_a_fault_and_its_password_is_not_told(monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{network._free_port()}")
    finding = the_one(check_proxies())
    assert finding.level == "fault" and "does not answer" in finding.what and "secret" not in finding.as_text()
    assert finding.mend.startswith("unset https_proxy")


def test_a_proxy_that_answers_is_well_but_should_not_be_asked_for_this_machine(monkeypatch, listener):
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{listener}")
    assert the_one(check_proxies()).level == "ok"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    finding = the_one(check_proxies())
    assert finding.level == "warning" and finding.mend == "export no_proxy=localhost"
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert the_one(check_proxies()).level == "ok"


@pytest.mark.parametrize("value", ["http://", "gopher://a:1", "http://a:port", "http://:80"])
def test_what_is_no_address_of_a_proxy_is_a_fault(monkeypatch, value):
    monkeypatch.setenv("http_proxy", value)
    assert "is no address" in the_one(check_proxies()).what


def test_headers_that_are_no_json_are_a_fault(monkeypatch):
    monkeypatch.setenv("BEIT_HTTP_HEADERS", "Authorization: x")
    finding = the_one(check_proxies())
    assert finding.level == "fault" and finding.mend.startswith("unset BEIT_HTTP_HEADERS")


def test_a_proxy_that_is_slow_is_a_warning(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")

    def connect(address, timeout):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", connect)
    finding = the_one(check_proxies())
    assert finding.level == "warning" and "slow" in finding.what and "secret" not in finding.as_text()


@pytest.mark.parametrize(("is_known", "level"), [(True, None), (None, "warning"), (False, "fault")])
def test_only_a_name_that_is_surely_unknown_is_a_fault(monkeypatch, is_known, level):
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setattr(network, "_has_address", lambda name: is_known if name == "first" else True)
    assert [finding.level for finding in OWN_NAME()] == ([level] if level else [])


def test_a_name_server_that_does_not_answer_says_nothing(monkeypatch):
    release = Event()
    monkeypatch.setattr(network, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: release.wait(10))
    assert network._has_address("first") is None
    release.set()
