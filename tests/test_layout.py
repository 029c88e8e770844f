"""Guards of the source tree: who may import whom, what `tokenize/` must not contain, what the package ships."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("tokenize", "pretrain", "finetune")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for name in ("common", *STAGES) for path in (ROOT / name).rglob("*.py"))])
STANDARD_MODULES = set(sys.stdlib_module_names)

# Packages that only some modules may import: each can be replaced in one place, and start-up stays fast.
RESTRICTED = {
    "deepspeed": {"common/training/engine.py"},
    "click": {
        "cli.py",
        "cli_options.py",
        "demo.py",
        "tokenize/commands.py",
        "pretrain/commands.py",
        "finetune/commands.py",
    },
    "torchvision": set(),
    "timm": set(),
    "transformers": set(),
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported_modules(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: imports must be absolute and start with beit."
            yield node.module


def test_there_are_sources_to_check():
    assert len(SOURCES) > 30


def test_tokenize_has_no_init():
    assert not (ROOT / "tokenize" / "__init__.py").exists(), (
        "tokenize/__init__.py would turn the folder into a package that shadows the standard library's tokenize module "
        "whenever Python runs from the repository root; then every traceback dies inside linecache"
    )


def test_no_other_name_at_the_root_shadows_the_standard_library():
    names = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert not names & STANDARD_MODULES


def test_python_still_works_from_the_repository_root():
    code = "import linecache, inspect, tokenize; print(tokenize.__file__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not Path(out.strip()).is_relative_to(ROOT / "tokenize")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_import_table(path):
    here = path.relative_to(ROOT).parts[0] if path.parent != ROOT else "root"
    for module in imported_modules(path):
        first, _, rest = module.partition(".")
        assert first not in ("pretrain", "finetune", "common"), (
            f"{name_of(path)} imports {module}: write beit.{module}, else every class exists twice"
        )
        if first in RESTRICTED:
            assert name_of(path) in RESTRICTED[first], f"{name_of(path)} must not import {first}"
        if first != "beit" or here == "root":
            continue
        target = rest.split(".")[0]
        allowed = {"common"} if here == "common" else {"common", here}
        if path.name == "commands.py":
            allowed.add("cli_options")
        assert target in allowed or rest == "", f"{name_of(path)} must not import beit.{rest}"


@pytest.mark.parametrize("name", ["cli.py", "cli_options.py", "demo.py", *(f"{stage}/commands.py" for stage in STAGES)])
def test_command_modules_import_no_torch_at_the_top(name):
    heavy = {"torch", "deepspeed", "pyarrow", "webdataset"}
    assert not heavy & {module.split(".")[0] for module in imported_modules(ROOT / name, top_level_only=True)}


@pytest.mark.parametrize(
    "module", ["cli", "demo", *(f"{stage}.commands" for stage in STAGES), "pretrain.train", "finetune.train"]
)
def test_nothing_is_imported_for_pictures_before_one_is_drawn(module):
    code = f"import sys, beit.{module}; print(*{{'matplotlib', 'jinja2'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # torch itself brings jinja2 where it compiles.
    assert not set(out.split()) - ({"jinja2"} if module.endswith("train") else set())


def test_packaging_list_equals_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tree = {"beit"} | {".".join(("beit", *path.relative_to(ROOT).parts[:-1])) for path in SOURCES}
    assert set(listed) == tree


def test_package_data_patterns_match_files():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, globs in patterns.items():
        for pattern in globs:
            assert list(ROOT.joinpath(*package.split(".")[1:]).glob(pattern)), f"{package}: nothing matches {pattern}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_holds(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


def test_no_module_grows_past_500_lines():
    long = {name_of(path): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 500}
    assert not long


def test_no_path_of_a_build_machine_is_committed():
    pattern = re.compile(r"/(?:wor[k]|hom[e]/\w+)/")
    for path in [*SOURCES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not pattern.search(path.read_text()), name_of(path)
