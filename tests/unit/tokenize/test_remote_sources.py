"""Sources on a web server, in a bucket and behind any other fsspec URL give the store that local files give."""

import json
import re
import sys
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.errors import InputError
from beit.common.sources.index_build import build_index
from beit.common.sources.parquet import ParquetShard
from beit.common.storage.place import RemoteError, place_of
from beit.common.storage.remote_place import forget_stores
from beit.common.store import open_store
from beit.tests.file_server import FileServer, serve
from beit.tests.impatience import hurry
from beit.tests.s3_server import serve_s3
from beit.tests.tiny_store import encoded_image, tokenize, tree_bytes, write_folder, write_members, write_tars


@pytest.fixture
def at_once(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "images", (5, 7))


def served(folder, prefix="/"):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f"{prefix}{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}


def tokens_of(store):
    return {
        name: data for name, data in tree_bytes(store).items() if name.startswith("tokens/") and name[-4:] == ".tar"
    }


def put_in_memory(files):
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    file_system.pipe(files)


@pytest.mark.parametrize("scheme", ["http", "s3", "memory"])
def test_remote_tars_are_referenced_and_give_the_tokens_of_local_ones(tmp_path, tars, scheme):
    tokenize(tars, tmp_path / "local")
    put_in_memory(served(tars, "/train/"))
    with serve(FileServer(served(tars, "/train/"))) as server, serve_s3(served(tars, "train/")) as bucket:
        root = {"http": server.url, "s3": bucket, "memory": "memory:/"}[scheme] + "/train"
        for number, spec in enumerate((root, f"{root}/part-{{0..1}}.tar", f"{root}/*.tar")):
            store = tmp_path / f"remote-{number}"
            assert tokenize(spec, store).num_samples == 12
            assert tokens_of(store) == tokens_of(tmp_path / "local")
            assert json.loads((store / "store.json").read_text())["image_root"].replace(":///", "://") == root
            assert not (store / "images").exists()
        manifest, local = (
            json.loads((tmp_path / name / "tokens/000001-part-1.manifest.json").read_text())["image"]
            for name in ("remote-0", "local")
        )
        assert manifest["sha256"] == local["sha256"] and manifest["stamp"]
        sample = open_store(tmp_path / "remote-0")[3]
        assert sample["key"] == "k003" and sample["label"] == 0 and sample["image"].size == (48, 40)
        assert tokenize(root, tmp_path / "remote-0").num_shards_kept == 2


@pytest.mark.parametrize("call", ["refs", "stream"])
def test_remote_tables_are_waited_for_side_by_side(tmp_path, monkeypatch, call):
    rows = [{"bytes": encoded_image(number), "path": f"{number}.jpg"} for number in range(4)]
    for number, row in enumerate(rows):
        pq.write_table(pa.table({"image": [row]}), tmp_path / f"{number}.parquet")
    put_in_memory(served(tmp_path, "/tables/"))
    whole, meeting = getattr(ParquetShard, call), threading.Barrier(len(rows))

    def meet(shard):
        meeting.wait(60)  # of a slow server, each would take the time of the slowest
        return whole(shard)

    monkeypatch.setattr(ParquetShard, call, meet)
    assert tokenize("memory://tables", tmp_path / "store").num_samples == len(rows)


def test_every_remote_tar_crosses_the_network_once(tmp_path):
    members = {f"{number:03d}.jpg": encoded_image(number, size=(400, 300)) * 20 for number in range(40)}
    tar = write_members(tmp_path / "x.tar", members)
    size = tar.stat().st_size
    assert size > 2_000_000
    with serve(FileServer({"/x.tar": tar.read_bytes()})) as server:
        assert tokenize(f"{server.url}/x.tar", tmp_path / "store").num_samples == 40
        look_at_labels = 64 * 512
        assert server.bytes_sent < 2 * size + look_at_labels  # the first one is looked into for labels before
        assert len(server.paths) < 10


@pytest.mark.parametrize("scheme", ["http", "s3", "memory"])
def test_remote_images_and_lists_are_packed(tmp_path, scheme):
    folder = write_folder(tmp_path / "photos" / "été #1 50%", 4)
    write_folder(tmp_path / "photos" / "b", 3)
    (tmp_path / "photos" / "list.txt").write_text("été #1 50%/001.png\nb/002.png\n", encoding="utf-8")
    (tmp_path / "photos" / "table.csv").write_text("path,label\nété #1 50%/003.png,rose\n", encoding="utf-8")
    tokenize(folder.parent, tmp_path / "local")
    put_in_memory(served(folder.parent, "/photos/"))
    files = served(folder.parent, "photos/")
    with serve(FileServer({f"/{name}": data for name, data in files.items()})) as server, serve_s3(files) as bucket:
        root = {"http": server.url, "s3": bucket, "memory": "memory:/"}[scheme] + "/photos"
        tokenize(root, tmp_path / "remote")
        assert tokens_of(tmp_path / "remote") == tokens_of(tmp_path / "local")
        assert tokenize(f"{root}/list.txt", tmp_path / "list").num_samples == 2
        tokenize(f"{root}/table.csv", tmp_path / "table")
        assert open_store(tmp_path / "table").info.class_names == ("rose",)


@pytest.mark.parametrize("scheme", ["http", "s3", "memory"])
def test_remote_tables_are_packed_in_few_requests(tmp_path, scheme):
    cells = [{"bytes": encoded_image(number, "png"), "path": f"{number}.png"} for number in range(40)]
    for number in range(2):
        table = pa.table({"image": cells[number::2], "label": [0, 1] * 10, "note": ["x" * 1000] * 20})
        (tmp_path / "tables").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"tables/train-{number}.parquet", row_group_size=10)
    tokenize(tmp_path / "tables", tmp_path / "local", shard_size=9)
    put_in_memory(served(tmp_path / "tables", "/tables/"))
    files = served(tmp_path / "tables", "tables/")
    with serve(FileServer({f"/{name}": data for name, data in files.items()})) as server, serve_s3(files) as bucket:
        root = {"http": server.url, "s3": bucket, "memory": "memory:/"}[scheme] + "/tables"
        tokenize(root, tmp_path / "remote", shard_size=9)
        assert tokens_of(tmp_path / "remote") == tokens_of(tmp_path / "local")
        assert open_store(tmp_path / "remote")[0]["label"] in (0, 1)
        if scheme == "http":
            assert len(server.paths) < 50  # for 40 images and 4 row groups; each opening costs two


def test_a_connection_that_breaks_is_taken_up_again(tmp_path, tars, at_once):
    tokenize(tars, tmp_path / "local")
    with serve(FileServer(served(tars))) as server:
        server.breaks = [10_000, 0, 7000, 10, 400]
        tokenize(f"{server.url}/part-{{0..1}}.tar", tmp_path / "store")
        assert not server.breaks
    assert tokens_of(tmp_path / "store") == tokens_of(tmp_path / "local")


def test_a_server_that_stays_away_stops_the_run_with_one_line_and_a_rerun_completes(tmp_path, tars, at_once):
    with serve(FileServer(served(tars))) as server:
        spec = f"{server.url}/part-{{0..1}}.tar"
        server.statuses = [*[200] * 4, *[503] * 20]  # two looks, and the first labels
        with pytest.raises((RemoteError, InputError), match=rf"{server.url}/part-.\.tar .*503") as caught:
            tokenize(spec, tmp_path / "store")
        assert "\n" not in str(caught.value)
        assert [path.name for path in (tmp_path / "store").iterdir() if "tmp" in path.name] == []
        server.statuses = []
        assert tokenize(spec, tmp_path / "store").num_samples == 12


def test_an_image_that_cannot_be_fetched_is_not_given_up(tmp_path, at_once):
    write_folder(tmp_path / "photos", 4)
    files = served(tmp_path / "photos", "/photos/")
    with serve(FileServer(files)) as server:
        (tmp_path / "list.txt").write_text("".join(f"{name[1:]}\n" for name in [*files, "/photos/gone.png"]))
        server.files = files | {"/list.txt": (tmp_path / "list.txt").read_bytes()}
        server.statuses = [200, *[500] * 200]
        with pytest.raises(RemoteError, match=r"photos/00\d\.png cannot be read: the server answers 500"):
            tokenize(f"{server.url}/list.txt", tmp_path / "store")
        server.statuses = []
        summary = tokenize(f"{server.url}/list.txt", tmp_path / "store")
        assert summary.num_samples == 4 and dict(summary.skipped) == {"unreadable": 1}


def test_a_tar_that_changes_while_it_is_fetched_is_not_used(tmp_path, tars, monkeypatch):
    with serve(FileServer(served(tars))) as server:

        def change(*arguments):
            server.etag = '"v2"'

        monkeypatch.setattr(
            "beit.tokenize.shards.shard.encode_images", lambda images, *rest, **named: iter(change() or ())
        )
        with pytest.raises(InputError, match=r"part-0\.tar changed while it was tokenised"):
            tokenize(f"{server.url}/part-0.tar", tmp_path / "store")


@pytest.mark.parametrize(
    ("name", "has_ranges", "is_chunked", "statuses", "complaint"),
    [
        ("none.tar", True, False, [], "does not exist"),
        ("none.parquet", True, False, [], "does not exist"),
        ("none.txt", True, False, [], "does not exist"),
        ("none", True, False, [], "does not exist"),
        ("none/*.tar", True, False, [], "matches no file|does not exist"),
        ("part-0.tar", False, False, [], "cannot be read at offsets on this server; copy it to a disk first"),
        ("part-0.tar", True, True, [], "cannot be read at offsets on this server; copy it to a disk first"),
        ("part-0.tar", True, False, [403] * 9, r"may not be read \(403 Forbidden\); check the credentials"),
        ("part-0.tar", True, False, [500] * 9, "the server answers 500"),
        ("empty.tar", True, False, [], "is empty"),
    ],
)
def test_web_addresses_that_do_not_work_are_one_line(tmp_path, tars, name, has_ranges, is_chunked, statuses, complaint):
    files = served(tars) | {"/empty.tar": b""}
    server = FileServer(files, has_ranges=has_ranges, is_chunked=is_chunked, statuses=statuses)
    with serve(server), pytest.raises(InputError, match=complaint) as caught:
        tokenize(f"{server.url}/{name}", tmp_path / "store")
    assert str(caught.value).startswith(f"{server.url}/{name}") and "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store/tokens").glob("*.tar"))


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.txt", "x.csv", "folder/", "x-*.tar", "x-{0..9}.tar"])
def test_a_refused_connection_is_one_line(tmp_path, name):
    with serve(FileServer({})) as server:
        url = server.url  # nobody listens there afterwards
    with pytest.raises(InputError, match=r"cannot be reached \(.*; check address and network") as caught:
        tokenize(f"{url}/{name}", tmp_path / "store")
    assert str(caught.value).startswith(url) and "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def refusal(spec, store):
    with pytest.raises(InputError) as caught:
        tokenize(spec, store)
    message = str(caught.value)
    assert message.startswith(spec) and "\n" not in message
    return message


SIGNATURE = "X-Amz-Credential=AKIA%2F2026%2Fus-east-1&X-Amz-Signature=0a%2Fb"


def test_presigned_addresses_are_read_and_their_signature_is_kept_nowhere(tmp_path, tars, monkeypatch):
    monkeypatch.setenv("BEIT_URL_QUERIES", "{}")
    cells = [{"bytes": encoded_image(number, "png"), "path": f"{number}.png"} for number in range(9)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a b.parquet")
    files = served(tars) | {"/a b.parquet": (tmp_path / "a b.parquet").read_bytes()}
    with serve(FileServer(files)) as server:
        for name, changes in (("a%20b.parquet", {}), ("part-{0..1}.tar", {"short_side": 32})):
            store = tmp_path / name
            for kept, signature in ((0, SIGNATURE), (3, SIGNATURE.replace("0a", "1c"))):  # signed anew
                server.signature = signature
                summary = tokenize(f"{server.url}/{name}?{signature}", store, **changes)
                assert summary.num_shards_kept == kept and summary.num_shards == 3
            assert b"Signature" not in b"".join(tree_bytes(store).values())


def test_messages_about_labelled_data_leave_the_signature_out(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_URL_QUERIES", "{}")
    cells = [{"bytes": encoded_image(number, "png"), "path": f"{number}.png"} for number in range(3)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    files = {"/a.parquet": (tmp_path / "a.parquet").read_bytes()}
    with serve(FileServer(files, signature=SIGNATURE)) as server:
        index = build_index(f"{server.url}/a.parquet?{SIGNATURE}", tmp_path / "cache")
        with pytest.raises(InputError, match=r"no labels found in \S*a\.parquet; ") as caught:
            index.require_labels()
    assert "Signature" not in str(caught.value) + repr(index)


def test_a_store_does_not_refer_to_a_presigned_tar(tmp_path, tars, monkeypatch):
    monkeypatch.setenv("BEIT_URL_QUERIES", "{}")
    with serve(FileServer(served(tars), signature=SIGNATURE)) as server:
        url = f"{server.url}/part-0.tar?{SIGNATURE}"
        with pytest.raises(InputError, match="part-0.tar was given with a query, .* --short-side or --materialize"):
            tokenize(url, tmp_path / "store")
        with pytest.raises(InputError, match="part-0.tar may not be read|part-0.tar cannot be read"):
            tokenize(url.replace("0a", "zz"), tmp_path / "store", short_side=32)


def test_buckets_without_the_file_are_one_line(tmp_path):
    with serve_s3({"x.tar": b"x"}) as bucket:
        for root in (bucket, "s3://no-such-bucket"):
            for name in ("none.tar", "none", "none.txt", "none-*.tar"):
                assert re.search("does not exist|matches no file", refusal(f"{root}/{name}", tmp_path / "store"))


def test_missing_credentials_are_one_line(tmp_path, monkeypatch):
    with serve_s3({}) as bucket:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(variable)
        for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(variable, str(tmp_path / "none"))
        forget_stores()
        for name in ("x.tar", "folder", "x-*.tar", "x.txt", "x.parquet"):
            message = refusal(f"{bucket}/{name}", tmp_path / "store")
            assert "needs credentials (Unable to locate credentials)" in message


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=r"hf://datasets/x\.tar needs a package that is not installed .*fsspec"):
        place_of("hf://datasets/x.tar").read()
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    forget_stores()
    with pytest.raises(InputError, match=r"s3://b needs boto3 .* pip install boto3"):
        place_of("s3://b/x.tar").read()
