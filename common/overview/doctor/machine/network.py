"""Ports and names by which ranks meet, what a launcher has left in the environment, and proxies."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from urllib.parse import SplitResult, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # in every Python

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.errors import InputError
from beit.common.overview.doctor.findings import Finding, fault, refused, warning, well
from beit.common.processes.launcher_env import OF_ONE_RANK, find_launcher, under_launcher
from beit.common.storage.object_store import HEADERS_VARIABLE, web_headers

_USUAL_PORT = 29500
"""Where torchrun's ranks and mpirun's meet unless told otherwise."""
_PATIENCE_SECONDS = 3.0
"""For a name server or a proxy; on one's own network they take milliseconds."""
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_PROXY_VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_PROXY_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "STORAGE_EMULATOR_HOST", "HF_ENDPOINT")


def check_launcher() -> Iterator[Finding]:
    """Does the environment say that this is one of several ranks, as a shell in a batch job may?"""
    launcher = find_launcher()
    if launcher is None or not under_launcher():
        yield well("launcher", "this is no rank of any; --gpus starts ranks here")
        return
    rank, size = os.environ[launcher.rank], os.environ[launcher.world_size]
    names = [name for name in (launcher.rank, launcher.world_size, *OF_ONE_RANK) if name in os.environ]
    yield fault(
        "launcher",
        f"{launcher.variables} say that this is rank {rank} of {size}: a training would wait here for the others",
        f"unset {' '.join(dict.fromkeys(names))}",
    )


def check_ports() -> Iterator[Finding]:
    """Can ranks reach each other on this machine, and by its name?"""
    found = [*_loopback(), *_meeting_port(), *_interfaces(), *_own_name()]
    yield from found
    if not found:
        yield well("ports", f"open on 127.0.0.1, {_USUAL_PORT} is free, {socket.gethostname()} has an address")


def _loopback() -> Iterator[Finding]:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=_PATIENCE_SECONDS).close()
    except OSError as error:
        yield fault("ports", f"no connection on 127.0.0.1 ({error}): ranks cannot meet", "ip link set lo up as root")


def _meeting_port() -> Iterator[Finding]:
    given = os.environ.get("MASTER_PORT")
    if given is not None and not (given.isdecimal() and 0 < int(given) < 1 << 16):
        yield fault("ports", f"MASTER_PORT ({given}) is no port", "unset MASTER_PORT")
        return
    port = _USUAL_PORT if given is None else int(given)
    if under_launcher() or not _is_taken(port):
        return
    who = f"port {port} is taken{_holder(port)}"
    if given is None:
        yield warning("ports", f"{who}: ranks of torchrun and mpirun meet there", f"export MASTER_PORT={_free_port()}")
    else:
        yield fault("ports", f"{who}, and MASTER_PORT says to meet there", f"export MASTER_PORT={_free_port()}")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError:
            return True
    return False


def _holder(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _interfaces() -> Iterator[Finding]:
    there = set(psutil.net_if_addrs())
    for variable in _INTERFACE_VARIABLES:
        # NCCL's may be a prefix, or begin with = (exactly these) or ^ (all but these).
        value = os.environ.get(variable, "")
        names = [name for name in value.lstrip("=").split(",") if name]
        if value.startswith("^") or not names:
            continue
        if not any(name in there or (variable.startswith("NCCL") and _begins_one(name, there)) for name in names):
            yield fault(
                "ports",
                f"{variable} ({value}) is no network interface here ({', '.join(sorted(there))})",
                f"unset {variable}",
            )


def _begins_one(prefix: str, names: set[str]) -> bool:
    return any(name.startswith(prefix) for name in names)


def _own_name() -> Iterator[Finding]:
    for variable, name in (("MASTER_ADDR", os.environ.get("MASTER_ADDR")), ("", socket.gethostname())):
        is_known = not name or _has_address(name)
        if is_known:
            continue
        if is_known is None:
            what = f"nothing said in {_PATIENCE_SECONDS:g} s which address {name} has"
            yield warning("ports", what, f"beit doctor again, or enter it: echo 'ADDRESS {name}' >> /etc/hosts as root")
        elif variable:
            yield fault("ports", f"{variable} ({name}) is no known name: ranks cannot meet there", f"unset {variable}")
        else:
            yield warning(
                "ports",
                f"the name of this machine ({name}) has no address: ranks on other machines cannot find it",
                f"echo '127.0.1.1 {name}' >> /etc/hosts as root, or set MASTER_ADDR",
            )


def _has_address(name: str) -> bool | None:
    """Whether a name is known; None where a name server takes too long to say."""
    known: list[bool] = []

    def ask() -> None:
        try:
            known.append(bool(socket.getaddrinfo(name, None)))
        except OSError:
            known.append(False)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    return known[0] if known else None


def check_proxies() -> Iterator[Finding]:
    """Do proxies answer through which files would be fetched, and do they leave out what is on this machine?"""
    proxies = {name: os.environ[name] for name in _PROXY_VARIABLES if os.environ.get(name)}
    found = [finding for name, value in proxies.items() for finding in _proxy(name, value)]
    if proxies:
        found += _endpoints()
    try:
        web_headers("")
    except InputError as error:
        found.append(refused("proxies", error, f"unset {HEADERS_VARIABLE}, or correct it"))
    yield from found
    if not found:
        yield well("proxies", f"{', '.join(proxies)} answer" if proxies else "none")


def _proxy(name: str, value: str) -> Iterator[Finding]:
    parts = _split(value)
    if parts is None:
        yield fault("proxies", f"{name} is no address such as http://proxy:3128", f"unset {name}, or correct it")
        return
    host, port = str(parts.hostname), parts.port or _PROXY_PORTS[parts.scheme]  # what else is in it may be a password
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_SECONDS).close()
    except TimeoutError:
        yield warning(
            "proxies",
            f"{name}: {host}:{port} has not answered in {_PATIENCE_SECONDS:g} s: it is slow, or away",
            f"beit doctor again; if it stays away, unset {name}, or correct it",
        )
    except OSError as error:
        yield fault(
            "proxies",
            f"{name}: {host}:{port} does not answer ({error}): nothing can be fetched through it",
            f"unset {name}, or correct it",
        )


def _split(value: str) -> SplitResult | None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        is_one = parts.scheme in _PROXY_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return None
    return parts if is_one else None


def _endpoints() -> Iterator[Finding]:
    """Name servers of one's own that would be asked for by way of the proxy."""
    for name in _ENDPOINTS:
        value = os.environ.get(name, "")
        host = urlsplit(value if "://" in value else f"http://{value}").hostname if value else None
        if host in ("localhost", "127.0.0.1", "::1") and not proxy_bypass_environment(host):
            yield warning(
                "proxies",
                f"{name} is on this machine, and no_proxy does not leave {host} out: the proxy would be asked for it",
                f"export no_proxy={host}" + (",$no_proxy" if os.environ.get("no_proxy") else ""),
            )
