import json

import pytest
from click.testing import CliRunner

from beit.common.errors import InputError
from beit.tests.file_server import serve
from beit.tests.served_folder import SCHEMES, serve_folder, web_server
from beit.tests.tiny_store import BlockSums, tokenize, write_folder, write_tars
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.commands import verify_command


@pytest.fixture
def made(tmp_path):
    tokenize(write_tars(tmp_path / "images", (4, 3)), tmp_path / "store")
    return tmp_path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_good_store_behind_a_url_has_no_problem(made, scheme):
    tokenize(write_folder(made / "loose", 5), made / "packed")
    with serve_folder(made, scheme) as url:
        for store, samples in (("store", 7), ("packed", 5)):
            report = verify_store(f"{url}/{store}", audit=2, tokenizer=BlockSums())
            assert (report.problems, report.num_samples) == ([], samples)


def test_the_command_takes_a_url_and_fails_for_a_damaged_store(made):
    with serve(web_server(made)) as server:
        assert CliRunner().invoke(verify_command, [f"{server.url}/store/"]).exit_code == 0
        name = "/store/tokens/000001-part-1.tar"
        server.files[name] = server.files[name][:700] + b"\xa5" + server.files[name][701:]
        result = CliRunner().invoke(verify_command, [f"{server.url}/store"])
        assert result.exit_code == 1
        assert f"shard 000001-part-1: {server.url}{name} is damaged: its sha256" in result.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images/part-0.tar", "part-0.tar is damaged: its sha256"),
        ("store/tokens/000000-part-0.samples.parquet", "samples.parquet is damaged: its sha256"),
        ("store/tokens/000000-part-0.manifest.json", "manifest.json is not valid JSON"),
    ],
)
def test_damage_on_the_server_is_found_in_its_shard(made, name, message):
    with serve(web_server(made)) as server:
        content = server.files[f"/{name}"]
        server.files[f"/{name}"] = content[:600] + b"\xff" * 8 + content[608:]
        (problem,) = verify_store(f"{server.url}/store").problems
    assert problem.startswith("shard 000000-part-0: ") and message in problem and server.url in problem


@pytest.mark.parametrize("name", ["tokens/000001-part-1.tar", "tokens/000001-part-1.manifest.json"])
def test_missing_and_foreign_files_are_found(made, name):
    with serve(web_server(made)) as server:
        del server.files[f"/store/{name}"]
        server.files["/store/tokens/foreign.tar"] = b"x"
        problems = verify_store(f"{server.url}/store").problems
    assert len(problems) == 2
    assert "tokens/foreign.tar does not belong" in problems[0] and f"{name} does not exist" in problems[1]


def test_a_manifest_cannot_choose_where_its_files_are_written(made):
    with serve(web_server(made)) as server:
        name = "/store/tokens/000000-part-0.manifest.json"
        manifest = json.loads(server.files[name])
        manifest["samples"]["name"] = "../../../escaped"
        server.files[name] = json.dumps(manifest).encode()
        (problem,) = verify_store(f"{server.url}/store").problems
    assert "'../../../escaped' must be a plain file name" in problem


def test_what_is_no_store_is_refused(made):
    with serve(web_server(made)) as server, pytest.raises(InputError, match="is not a token store"):
        verify_store(f"{server.url}/images")
