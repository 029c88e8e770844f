"""Guards of the source tree: who may import whom, what `tokenize/` must not contain, what the package ships."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import beit

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
        "cli_streams.py",
        "demo.py",
        "plan.py",
        "common/overview/commands.py",
        "tokenize/commands.py",
        "pretrain/commands.py",
        "finetune/commands.py",
        "finetune/weights/commands.py",
        "finetune/worth/commands.py",
    },
    "matplotlib": {"common/pages/charts.py", "common/pages/svg.py", "common/pages/ticks.py"},
    "jinja2": {"common/pages/html_page.py"},
    "markupsafe": {"common/pages/html_page.py"},
    "torchvision": set(),
    "tifffile": {"common/images/readers/tiff.py", "finetune/prediction/large_masks.py"},
    "pydicom": {"common/images/readers/dicom.py"},
    "pillow_heif": {"common/images/readers/heif.py"},
    "imagecodecs": {"common/images/readers/dicom.py", "common/images/readers/jxl.py"},
    "rasterio": set(),
    "huggingface_hub": {"finetune/weights/fetch.py"},
    "imagehash": {"tokenize/survey/duplicates.py"},
    "timm": {"finetune/weights/export/timm.py"},
    "transformers": {"finetune/weights/export/huggingface.py"},
    "onnx": {"finetune/weights/export/onnx.py", "finetune/weights/import_exported.py"},
    **{name: {"finetune/weights/export/onnx.py"} for name in ("onnx_ir", "onnxruntime", "onnxscript")},
}

# The loose ground of common/: any room may import it, and it imports no room.
GROUND = {"errors", "config", "rng", "progress", "images", "jitter", "views"}
GROUND_ROOMS = {"images"}  # of these, what is a room by itself

# The import table: what each room of common/, and each of the doors beside them, may import besides the loose ground.
ROOMS = {
    "storage": set(),
    "sources": {"storage"},
    "shards": {"storage"},
    "tokenizers": {"vit", "storage"},
    "vit": {"storage"},
    "processes": {"storage"},
    "pages": {"storage"},
    "reading": {"sources", "processes", "storage"},
    "runs": {"pages", "processes", "storage"},
    "forecast": {"processes", "storage", "vit"},
    "training": {"forecast", "reading", "runs", "processes", "storage", "vit"},
}
DOORS = {
    "store": {"shards", "storage"},
    "tokenizer": {"tokenizers", "shards", "storage"},
    "encoder": {"vit", "storage"},
}
ROOMS["overview"] = {*ROOMS, *DOORS}  # commands that look at everything, and that nothing looks at
REPORTS = "common.overview.report.automatic"  # what a run at its end calls of the overview, and nothing else does
# Arrows of the table that carry a single name each.
ONE_NAME = {("training", "vit"): "VisionTransformer", ("tokenizer", "shards"): "TokenizerInfo"}

MAX_LOOSE_FILES, MAX_ROOM_FILES = 10, 16


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
def test_stages_meet_in_common_only(path):
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
        assert not rest.startswith("common.overview") or here == "common" or rest == REPORTS, (
            f"{name_of(path)} must not import beit.{rest}: of the overview a run calls {REPORTS} at its end"
        )
        target = rest.split(".")[0]
        allowed = {"common"} if here == "common" else {"common", here}
        if path.name == "commands.py":
            allowed.add("cli_options")
        assert target in allowed or rest == "", f"{name_of(path)} must not import beit.{rest}"


def test_a_plan_knows_of_the_stages_what_they_forecast():
    """What stands at the root may import every stage; a plan that did could disagree with the command it speaks of."""
    modules = imported_modules(ROOT / "plan.py") if (ROOT / "plan.py").exists() else ()
    of_stages = {module for module in modules if module.split(".")[1:2] and module.split(".")[1] in STAGES}
    doors = {f"beit.{stage}.{door}" for stage in STAGES for door in ("forecast", "rates")}
    assert of_stages <= doors


def place_of(path):
    """Return the room of a file, or the file itself where it lies in none: the nodes of the import table."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts[:2])


def imported_files(path):
    """Yield each file of the package that a file imports from, and the names it takes, function bodies included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module.startswith("beit."):
            continue
        for alias in node.names:
            inside = ROOT.joinpath(*node.module.split(".")[1:], f"{alias.name}.py")
            module = ROOT.joinpath(*node.module.split(".")[1:]).with_suffix(".py")
            yield (inside, None) if inside.exists() else (module, alias.name)


@pytest.mark.parametrize("path", sorted((ROOT / "common").rglob("*.py")), ids=name_of)
def test_import_table_of_common(path):
    here = place_of(path).removeprefix("common/")
    for target, name in imported_files(path):
        there = place_of(target).removeprefix("common/")
        if there in GROUND or there == here or (path.name == "commands.py" and there == "cli_options"):
            continue
        assert here not in GROUND, f"{name_of(path)} is loose ground and must not import {name_of(target)}"
        allowed = (ROOMS | DOORS)[here]
        assert there in allowed, (
            f"{name_of(path)} must not import {name_of(target)}: {here} may import {sorted(allowed)}"
        )
        only = ONE_NAME.get((here, there), name)
        assert name == only, f"{name_of(path)} may import {only} of {there}, not {name}"


def test_the_documented_import_table_is_this_one():
    section = re.search(r"## Import table\n(.*?)\n## ", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)[1]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    documented = {start: set(ends.split(", ")) - {"nothing"} for start, ends in rows}
    only = {arrow: f"{arrow[1]} (only `{name}`)" for arrow, name in ONE_NAME.items()}
    table = {start: {only.get((start, end), end) for end in ends} for start, ends in (ROOMS | DOORS).items()}
    assert documented == table
    ground = re.search(r"^Loose ground.*$", section, re.MULTILINE)[0]
    assert set(re.findall(r"`(\w+)`", ground)) == GROUND


def test_every_room_is_on_the_page_about_the_house():
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = [path.parent for name in ("common", *STAGES) for path in (ROOT / name).rglob("*/__init__.py")]
    inner = [room for room in rooms if room.parent != ROOT / "common" or room.name in GROUND_ROOMS]
    assert len(inner) > 30
    table = page[page.index("## Rooms in rooms\n") : page.index("## Three walks\n")]
    missing = [name_of(room) for room in inner if f"{room.name}/`" not in table]
    assert not missing, f"docs/architecture.md does not name {missing}"


def test_the_picture_of_the_rooms_is_what_its_script_draws():
    drawn = subprocess.run([sys.executable, ROOT / "docs/make_rooms.py"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs/rooms.svg").read_text() == drawn.stdout, "python docs/make_rooms.py > docs/rooms.svg"


def circles(arrows):
    """Return the nodes from which a walk along the arrows can come back."""
    nodes = set(arrows) | set().union(*arrows.values())
    while True:
        ends = {node for node in nodes if not arrows.get(node, set()) & nodes}
        if not ends:
            return nodes
        nodes -= ends


@pytest.mark.parametrize("level", [name_of, place_of], ids=["files", "rooms"])
def test_no_circle(level):
    arrows = {}
    for path in SOURCES:
        arrows.setdefault(level(path), set()).update(level(target) for target, _ in imported_files(path))
    for node, targets in arrows.items():
        targets.discard(node)
    assert not circles(arrows)


def test_common_has_the_rooms_of_the_table_and_few_loose_files():
    loose = {path.stem for path in (ROOT / "common").glob("*.py")} - {"__init__"}
    assert loose == GROUND - GROUND_ROOMS | set(DOORS) and len(loose) <= MAX_LOOSE_FILES
    assert {path.parent.name for path in (ROOT / "common").glob("*/__init__.py")} == GROUND_ROOMS | set(ROOMS)


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES} - {ROOT}), ids=name_of)
def test_no_room_is_crowded(folder):
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MAX_ROOM_FILES, f"{name_of(folder)} has {len(files)} files; give some of them a room"


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.parent != ROOT and path.name == "__init__.py"], ids=name_of
)
def test_packages_hold_one_docstring(path):
    body = ast.parse(path.read_text()).body
    assert len(body) == 1, "a package says what lives there, and no more"


def test_the_root_package_says_where_its_names_are_and_imports_nothing():
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr, *[ast.Assign] * 4, ast.If], (
        "a docstring, the version, where the public names are, which they are, and what looks them up on first use"
    )
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in body[1:-1]}
    assert list(values) == ["__version__", "_HOMES", "__all__", "TYPE_CHECKING"] and not values["TYPE_CHECKING"]
    assert values["__all__"] == sorted([*values["_HOMES"], "__version__"])
    shown = {alias.name: node.module for node in body[-1].body for alias in node.names}
    assert shown == values["_HOMES"], "type checkers see what Python finds"
    assert [type(node) for node in body[-1].orelse] == [ast.FunctionDef] * 2  # __getattr__ and __dir__


def test_importing_the_package_loads_no_other_module():
    code = "import sys; before = set(sys.modules); import beit; dir(beit); print(*set(sys.modules) - before)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["beit"]


@pytest.mark.parametrize(
    "name",
    [
        "cli.py",
        "cli_options.py",
        "cli_streams.py",
        "demo.py",
        *(f"{stage}/commands.py" for stage in STAGES),
        "finetune/weights/commands.py",
        "common/overview/commands.py",
    ],
)
def test_command_modules_import_no_torch_at_the_top(name):
    heavy = {"torch", "deepspeed", "pyarrow", "webdataset"}
    assert not heavy & {module.split(".")[0] for module in imported_modules(ROOT / name, top_level_only=True)}


@pytest.mark.parametrize(
    "module", ["cli", "demo", *(f"{stage}.commands" for stage in STAGES), "pretrain.train", "finetune.train"]
)
def test_what_only_some_runs_need_is_not_imported_at_the_start(module):
    code = f"import sys, beit.{module}; print(*{{'matplotlib', 'jinja2', 'obstore'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # torch itself brings jinja2 where it compiles.
    assert not set(out.split()) - ({"jinja2"} if module.endswith("train") else set())


def test_packaging_list_equals_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tree = {"beit"} | {".".join(("beit", *path.relative_to(ROOT).parts[:-1])) for path in SOURCES}
    assert set(listed) == tree


def test_templates_are_shipped():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = {package for package, globs in patterns.items() if "*.html" in globs}
    templates = [path for stage in ("common", *STAGES) for path in (ROOT / stage).rglob("*.html")]
    assert folders == {".".join(("beit", *path.relative_to(ROOT).parts[:-1])) for path in templates}


def test_package_data_patterns_match_files():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, globs in patterns.items():
        for pattern in globs:
            assert list(ROOT.joinpath(*package.split(".")[1:]).glob(pattern)), f"{package}: nothing matches {pattern}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_holds(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


PUBLIC_NAMES = set(beit.__all__)
# Files and modules of other projects, of examples, and of earlier commits that measured what a page says.
FOREIGN = re.compile(
    r"benchmarks/few_labels\.py|beit/(?:datasets|transforms)\.py|timm/.*|models_mae\.py|brightness\.py|colours\.py|beit\.tokenizers"
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def words_about_code(path):
    """Return a page, or what stands in the strings and comments of a source."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    comments = [line.split("# ", 1)[1] for line in text.splitlines() if "# " in line]
    return "\n".join([*(string for string in strings if isinstance(string, str)), *comments])


def is_in_the_tree(name, path):
    """Whether a file is there: beside the one that names it, above it, from the root on, or in every stage."""
    folders = [folder for folder in path.parents if folder.is_relative_to(ROOT)]
    return any((folder / name).is_file() for folder in folders) or all((ROOT / at / name).is_file() for at in STAGES)


def is_module_or_in_one(name):
    """Whether a dotted name that starts with beit is a package, a module, or something that a module defines."""
    folder, *rest = ROOT, *name.split(".")[1:]
    while rest and (folder / rest[0]).is_dir():
        folder = folder / rest.pop(0)
    if not rest or folder == ROOT and rest[0] in PUBLIC_NAMES:
        return True
    module = folder / f"{rest.pop(0)}.py"
    return module.is_file() and (
        not rest or re.search(rf"^(?:def |class |){rest[0]}\b", module.read_text(), re.MULTILINE)
    )


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=name_of)
def test_files_and_modules_that_are_named_exist(path):
    words = words_about_code(path)
    files = set(re.findall(r"(?<![\w/.:-])\w[\w/-]*\.py\b(?!\.?\w)", words))
    modules = set(re.findall(r"(?<![\w/.-])beit(?:\.\w+)+", words))
    gone = {name for name in files if not is_in_the_tree(name, path)}
    gone |= {name for name in modules if not name.endswith(".py") and not is_module_or_in_one(name)}
    assert not {name for name in gone if not FOREIGN.fullmatch(name)}


def test_what_pages_import_exists():
    imported = {
        f"{node.module}.{alias.name}"
        for page in PAGES
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "beit"
        for alias in node.names
    }
    assert len(imported) > 10
    assert not {name for name in imported if not is_module_or_in_one(name)}


def headings(page):
    """Return the anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_pages_lead_somewhere(page):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or anchor and anchor not in headings(target):
            dead.append(link)
    assert not dead


def test_no_module_grows_past_500_lines():
    long = {name_of(path): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 500}
    assert not long


def test_no_path_of_a_build_machine_is_committed():
    pattern = re.compile(r"/(?:wor[k]|hom[e]/\w+)/")
    for path in [*SOURCES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not pattern.search(path.read_text()), name_of(path)


def test_no_merge_is_half_done():
    """In what people read and what is run: `git merge` marks where two versions differ."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    marked = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)
    assert not [name_of(path) for path in [*SOURCES, *pages] if marked.search(path.read_text())]
