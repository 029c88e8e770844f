"""Python, the packages that beit needs, its extras, and a compiler where something wants one."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from beit import __version__
from beit.common.overview.doctor.child import Child
from beit.common.overview.doctor.findings import Finding, fault, warning, well
from beit.common.overview.doctor.machine.device import has_gpu

ROOT = Path(__file__).resolve().parents[4]
"""The package itself; in a checkout its pyproject.toml, which is newer than what pip noted when it was installed."""
_SPARED = ("simplejpeg",)
"""Without which all works, slower."""


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]], str]:
    """Return what beit needs, what each extra needs besides, and which Pythons it runs on."""
    file = ROOT / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = {name: list(map(Requirement, lines)) for name, lines in project["optional-dependencies"].items()}
        return list(map(Requirement, project["dependencies"])), extras, project["requires-python"]
    found = importlib.metadata.metadata("beit")
    lines = list(map(Requirement, importlib.metadata.requires("beit") or []))
    plain = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    extras = {
        name: [line for line in lines if line not in plain and line.marker and line.marker.evaluate({"extra": name})]
        for name in found.get_all("Provides-Extra") or []
    }
    return plain, extras, str(found["Requires-Python"])


def check_python() -> Iterator[Finding]:
    """Is this a Python that beit runs on?"""
    version, wanted = platform.python_version(), requirements()[2]
    if version.partition("+")[0] not in SpecifierSet(wanted, prereleases=True):
        yield fault("python", f"{version} ({sys.executable}), beit needs {wanted}", "make setup PYTHON=python3.12")
    elif sys.maxsize < 1 << 32:
        yield fault("python", f"{version} is a 32-bit build", "install a 64-bit Python and beit in it")
    else:
        yield well("python", f"{version}, beit {__version__} in {ROOT}")


def check_packages() -> Iterator[Finding]:
    """Are the packages here that beit needs, in versions it knows?"""
    needed = requirements()[0]
    yield from _judge(needed)
    if all(_state(line) == "" for line in needed):
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed", "numpy", "pillow")]
        yield well("packages", f"all {len(needed)} that are needed, such as {', '.join(versions)}")


def _judge(needed: Iterable[Requirement]) -> Iterator[Finding]:
    wrong = {line: state for line in needed if (state := _state(line))}
    for is_spared, tell in ((False, fault), (True, warning)):
        chosen = {line: state for line, state in wrong.items() if (line.name in _SPARED) == is_spared}
        if chosen:
            what = ", ".join(f"{line.name} {state}" for line, state in chosen.items())
            slower = ": images are decoded slower" if is_spared else ""
            yield tell("packages", what + slower, _install(f"{line.name}{line.specifier}" for line in chosen))


def _state(line: Requirement) -> str:
    """Return what is wrong with an installed package; nothing where nothing is."""
    try:
        version = importlib.metadata.version(line.name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
    if line.specifier.contains(version, prereleases=True):
        return ""
    return f"is {version}, beit needs {line.specifier}"


def _install(names: Iterable[str]) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *names])


def check_extras() -> Iterator[Finding]:
    """Which extras are here, and does something here want one that is not?"""
    told = []
    for name, lines in requirements()[1].items():
        if name == "dev":
            continue
        states = {line: _state(line) for line in lines}
        missing = [line for line, state in states.items() if state == "is not installed"]
        old = {line: state for line, state in states.items() if state not in ("", "is not installed")}
        if old:
            what = ", ".join(f"{line.name} {state}" for line, state in old.items())
            yield warning("extras", f"{name}: {what}", _install(f"{line.name}{line.specifier}" for line in lines))
        told.append(f"{name} ({'not ' if missing else ''}installed)")
        if name == "s3" and missing and (file := _aws_file()) is not None:
            yield warning(
                "extras",
                f"{file} holds credentials for s3://, which boto3 reads, and it is not installed",
                _install(f"{line.name}{line.specifier}" for line in lines),
            )
    yield well("extras", ", ".join(told))


def _aws_file() -> Path | None:
    """Return the file that would be read for credentials; None where the environment has them, or nothing does."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return None
    files = (os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), "~/.aws/config")
    return next((path for file in files if (path := Path(file).expanduser()).is_file()), None)


def check_compiler(device: Child) -> Iterator[Finding]:
    """Is a compiler here, where tokenizers are compiled without being asked to: on a GPU?"""
    for variable in ("CC", "CXX"):
        words = os.environ.get(variable, "").split()
        if words and shutil.which(words[0]) is None:
            yield warning(
                "compiler", f"{variable} names {words[0]}, which is not there: torch.compile fails", f"unset {variable}"
            )
            return
    import torch

    from beit.common.training.speed import missing_compiler

    is_on_gpu = has_gpu(device)
    lacking = missing_compiler(torch.device("cuda" if is_on_gpu else "cpu"))
    if lacking and is_on_gpu:
        mend = "pip install triton" if lacking == "triton" else "apt-get install gcc (or your system's C compiler)"
        yield warning("compiler", f"no {lacking}: tokenizers are not compiled, and speed.compile is refused", mend)
    elif lacking:
        yield well("compiler", f"no {lacking.removeprefix('a ')}, which only speed.compile=true would need here")
    else:
        yield well("compiler", "is here, for speed.compile" + (" and tokenizers" if is_on_gpu else ""))
