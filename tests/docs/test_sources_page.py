"""Every command of docs/sources.md runs, in order, on small data under the names it uses; servers are local."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.images.formats import IMAGE_SUFFIXES
from beit.common.store import open_store
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.file_server import FileServer, serve
from beit.tests.s3_server import serve_s3
from beit.tests.support import write_images
from beit.tokenize.config import TokenizeConfig

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "sources.md").read_text()
pytestmark = [pytest.mark.docs, pytest.mark.timeout(1800)]

# Appended to the shown commands: the same code, less of it.
LESS = "--views 2 --img-size 32 --patch-size 4"
IMAGES = {"folder": 12, "some": 8, "list": 2, "table": 2, "tars": 12, "parquet": 12, "web": 12, "web-parquet": 12}
IMAGES |= {"s3": 12, "s3-photos": 12, "damaged": 7}


def make_data(folder):
    write_images(folder / "photos", 12, size=48, classes=("roses", "tulips", "weeds"))
    photos = sorted((folder / "photos").rglob("*.png"))
    names = [path.relative_to(folder).as_posix() for path in photos]
    (folder / "list.txt").write_text("\n".join(names[:2]))
    (folder / "table.csv").write_text(f"path,label\n{names[0]},rose\n{names[5]},tulip\n")
    for name in ("shards", "tables"):
        (folder / name).mkdir()
    for number in range(4):
        with tarfile.open(folder / f"shards/train-{number:04d}.tar", "w") as tar:
            for path in photos[number::4]:
                tar.add(path, path.name)
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in photos]
    pq.write_table(pa.table({"image": cells}), folder / "tables/train.parquet", row_group_size=5)
    write_images(folder / "damaged", 7, size=48)
    (folder / "damaged/cut.png").write_bytes(photos[0].read_bytes()[:-100])


def test_commands_run_in_order(tmp_path):
    make_data(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    files = {name: (tmp_path / name).read_bytes() for name in names}
    commands = list(shown_commands(TEXT))
    looks = [command for command in commands if command.startswith("beit sources") or "--dry-run" in command]
    assert len(commands) == len(IMAGES) + len(looks) and len(looks) == 3
    server = FileServer({f"/{name}": data for name, data in files.items()})
    with serve(server), serve_s3(files, bucket="my-bucket"):
        local = [command.replace("https://data.example.org", server.url) for command in commands]
        printed = run_commands(local, tmp_path, lambda words: LESS if words[0] == "tokenize" else "")
        found = {store.name: len(open_store(store)) for store in (tmp_path / "stores").iterdir()}
    assert found == IMAGES
    assert "1 truncated" in printed
    assert json.loads((tmp_path / "photos.json").read_text())["num_images"] == 12
    assert (tmp_path / "photos.png").exists()


@pytest.mark.parametrize(
    "variables",
    [{"AWS_ENDPOINT_URL": "URL"}, {"AWS_ENDPOINT_URL_S3": "URL"}],
    ids=str,
)
def test_the_ways_to_name_another_s3_server_work(tmp_path, variables):
    with serve_s3({"a/x.txt": b"x"}) as bucket:
        url = os.environ["AWS_ENDPOINT_URL"]
        env = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
        env |= {name: value.replace("URL", url) for name, value in variables.items()}
        code = f"from beit.common.storage.matching import list_folder; print(list_folder('{bucket}/a')[0].path)"
        result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert result.stdout == "x.txt\n", result.stderr


def test_headers_of_web_requests_are_taken_from_the_environment():
    (setting,) = re.findall(r"BEIT_HTTP_HEADERS='(\{.*?\})'", TEXT)
    with serve(FileServer({"/x.txt": b"x"})) as server:
        code = f"from beit.common.storage.place import place_of; place_of('{server.url}/x.txt').read()"
        env = os.environ | {"BEIT_HTTP_HEADERS": setting}
        subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
        assert [headers["Authorization"] for headers in server.requests] == ["Bearer ..."]


def test_the_tables_name_what_there_is():
    assert all(f"`.{suffix}`" in TEXT for suffix in IMAGE_SUFFIXES)
    for setting in re.findall(r"--set (\w+)=", TEXT):
        assert setting in TokenizeConfig.__dataclass_fields__
    modules = [*(ROOT / "common/images").rglob("*.py"), *(ROOT / "common/sources").glob("*.py")]
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", TEXT, flags=re.MULTILINE))
    raised = set(re.findall(r'BadSample\(\s*"([a-z-]+)"', "".join(path.read_text() for path in modules)))
    assert listed == raised | {"decode-error"}  # the name of the rest
