"""The documents of a run directory, damaged one at a time, and all that reads them."""

import json

import torch

from beit.common.errors import InputError
from beit.common.runs.checkpoint import PortableState, find_checkpoint, open_checkpoint, save_checkpoint, way_of
from beit.common.runs.environment import Origin, read_environment, read_origin, write_origin
from beit.common.runs.learning_curves import learning_run
from beit.common.storage.documents import write_json
from beit.common.training.saver import check_record
from beit.finetune.compare.compare import compare_runs
from beit.finetune.compare.runs import read_runs
from beit.pretrain.stored_run import _read_data
from beit.tests.fuzz.mutations import mutate_bytes, mutate_json

ARCHITECTURE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
SCORES = {"top1": 0.5, "top5": 1.0, "loss": 0.5, "num_images": 10}
RECORD = {
    "data": {"samples_consumed": 8},
    "world_size": 1,
    "nonfinite": {"total": 1, "recent": [3]},
    "evaluation": {"val_top1": 0.5},
    "best": {"value": 0.5, "step": 4, "evals_since": 0, "metrics": {"val_top1": 0.5}},
}


def write_run(run):
    (run / "checkpoints").mkdir(parents=True)
    ones = {"weight": torch.ones(2)}
    for step in (2, 4):
        state = PortableState(model=ones, optimizer={"step/weight": torch.ones(())})
        rng = {"rank0/cpu": ones["weight"]}
        save_checkpoint(run / "checkpoints", step=step, state=state, rng=rng, record=RECORD, keep=2)
    (run / "config.toml").write_text("[train]\nglobal_batch_size = 8\nseed = 0\n")
    write_json(run / "environment.json", {"run_id": "a", "starts": [{"world_size": 2, "run": "/run", "time": "now"}]})
    write_origin(run / "origin.json", Origin(commit="a", step=2, named="/run/checkpoints/step_2"))
    records = [{"step": step, "epoch": 0.1 * step, "val_top1": 0.5, "images_per_second": 4.0} for step in (2, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_json(run / "data.json", {"store": "store", "store_sha256": "a", "lanes": 1})
    write_json(run / "evaluation.json", SCORES | {"data": "test"})
    provenance = {"step": 4, "total_steps": 4, "data": "train", "metrics": SCORES}
    document = {"format": "beit-encoder", "format_version": 1, "architecture": ARCHITECTURE, "task": "classification"}
    document |= {"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}, "provenance": provenance}
    for name in ("model", "last"):
        (run / name).mkdir()
        write_json(run / name / "config.json", document)
    return run


def write_probe(run):
    run.mkdir()
    (run / "config.toml").write_text('encoder = "x"\n[train]\nseed = 0\n')
    origin = {"encoder": "x", "data": "train", "num_train_images": 5, "num_images": 4, "top1": 0.5}
    write_json(run / "knn.json", {"task": "knn", **origin, "best_block": 0, "best_k": 1, "blocks": []})
    return run


def without_hash(data):
    """A commit record of before, in which damage does not show by itself."""
    return json.dumps({name: value for name, value in json.loads(data).items() if name != "sha256"}).encode()


def fuzz_runs(folder):
    run, probe = write_run(folder / "run"), write_probe(folder / "probe")
    commit = run / "checkpoints/step_4/COMMIT.json"
    documents = [commit, *run.glob("*.json"), run / "last/config.json", run / "model/config.json", probe / "knn.json"]
    sound = {path: path.read_bytes() for path in [*documents, run / "metrics.jsonl"]}

    def read(action):
        try:
            return action()
        except InputError as error:
            assert "\n" not in str(error)
            return None

    def fuzz(rng):
        path = rng.choice(list(sound))
        data = without_hash(sound[path]) if path == commit and rng.random() < 0.8 else sound[path]
        path.write_bytes((mutate_json if path.suffix == ".json" else mutate_lines)(data, rng))
        try:
            checkpoint = read(lambda: open_checkpoint(run / "checkpoints/step_4"))
            if checkpoint is not None:
                read(lambda: check_record(checkpoint))
            assert find_checkpoint(run / "checkpoints") is not None
            way_of(run / "checkpoints").parting(way_of(run / "checkpoints"))
            read(lambda: read_environment(run / "environment.json"))
            read(lambda: read_origin(run / "origin.json"))
            read(lambda: _read_data(run))
            read(lambda: compare_runs([run]))
            (run / "evaluation.json").rename(run / "aside")
            read(lambda: read_runs(run))
            (run / "aside").rename(run / "evaluation.json")
            read(lambda: compare_runs([probe]))
            curve = learning_run(run, name="run", colour=(0, 0, 0))
            assert curve.epochs_per_step is None or isinstance(curve.epochs_per_step, float)
            curve.last("val_top1")
        finally:
            if (run / "aside").exists():
                (run / "aside").rename(run / "evaluation.json")
            path.write_bytes(sound[path])

    return fuzz


def mutate_lines(data, rng):
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    lines = data.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = mutate_json(lines[number], rng)
    return b"\n".join(lines)
