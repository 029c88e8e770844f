"""Make tests/golden/written_at_365d2fa: stores, runs, an encoder and a model as commit 365d2fa wrote them. Run once.

    git worktree add /tmp/old 365d2fa                 # and make setup there
    mkdir /tmp/beit-golden && cd /tmp/beit-golden     # the documents name this folder
    /tmp/old/.venv/bin/python .../tests/golden/make_written_at_365d2fa.py .../tests/golden/written_at_365d2fa

Everything runs through the command line, in processes that call themselves `beit`, and through the public doors, so
that the script needs no other module of the package. Each training is asked to stop after its first step; a copy of it
is then continued to the end, and what that and the readers say is expected.json. Digests are exact; losses, features
and scores are floats of one thread on one machine. The encoder is the pre-training's, the model the fine-tuning's, the
tokenizer the folder of its own training. The files of TensorBoard, a second copy of the fine-tuned model and the
pictures are left out.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

RESUMABLE = 75
COLORS = {"blue": (40, 60, 200), "red": (200, 60, 40)}
GEOMETRY = ["--img-size", "16", "--patch-size", "4", "--views", "2", "--set", "threads=1", "--set", "workers=1"]
LOOP = {
    "train.steps": "16",
    "train.global_batch_size": "4",
    "train.precision": "fp32",
    "train.log_interval_steps": "1",
    "optimizer.warmup_steps": "2",
    "reader.num_workers": "0",
}
VIT = {"model.size": "tiny", "model.embed_dim": "8", "model.depth": "1", "model.num_heads": "2", "model.mlp_ratio": "2"}
# Another Pillow than this store's may render its crops differently by a level; that is not what is tested.
PRETRAIN = {**LOOP, **VIT, "data.replay": "tolerant", "held_out.pictures": "0", "train.ema_decay": "0.9"}
FINETUNE = {
    **LOOP,
    "optimizer.lr": "1e-2",
    "optimizer.clip_grad": "1.0",
    "train.eval_interval_steps": "1",
    "augment.rand_augment": "none",
    "mix.prob": "0",
}
TOKENIZER = {
    **LOOP,
    "model.vocab_size": "16",
    "model.downsampling": "4",
    "model.width": "8",
    "model.num_blocks": "1",
    "model.code_dim": "4",
    "data.view_size": "16",
    "data.crop_size": "16",
    "data.crops_per_image": "1",
    "data.num_eval_images": "2",
}


def noisy_png(number: int, color: tuple[int, int, int]) -> bytes:
    """Draw a noisy patch of one colour, 12 x 10 px."""
    noise = np.random.default_rng(number).integers(-30, 30, (10, 12, 3))
    buffer = io.BytesIO()
    Image.fromarray((noise + color).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, count: int) -> None:
    """Write images of both colours."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.png").write_bytes(noisy_png(number, list(COLORS.values())[number % 2]))


def write_tars(folder: Path, sizes: tuple[int, ...]) -> None:
    """Write labelled tars as a user has them."""
    folder.mkdir()
    number = 100
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"part-{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                label = number % 2
                members = {"png": noisy_png(number, list(COLORS.values())[label]), "cls": str(label).encode()}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"k{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                number += 1


def command(*words: str) -> subprocess.Popen[str]:
    """Start a command, under a neutral name and with no name of this machine in what it writes."""
    code = (
        "import platform, sys; sys.argv[0] = 'beit'; platform.platform = lambda: 'Linux'; "
        "from beit.cli import main; main()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BEIT_CACHE": str(Path("cache").resolve())}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stdout=pipe, stderr=pipe, text=True)


def beit(*words: str) -> str:
    """Run a command to its end and return what it printed."""
    process = command(*words)
    out, errors = process.communicate()
    assert process.returncode == 0, f"{words}\n{errors}"
    return out


def sets(settings: dict[str, str]) -> list[str]:
    """Return settings as options."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def train(words: list[str], run: str, settings: dict[str, str]) -> dict[str, Any]:
    """Train for a few steps in `run`, continue in a copy that is not kept, and return the losses of the copy's part."""
    process, log = command(*words, run, *sets(settings)), Path(run, "metrics.jsonl")
    while process.poll() is None and not (log.exists() and log.read_bytes()):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == RESUMABLE, errors
    step = len(metrics(run, "loss"))
    shutil.copytree(run, f"whole/{run}")
    beit(*words, f"whole/{run}", *sets(settings))
    losses = metrics(f"whole/{run}", "loss")
    assert len(losses) == int(settings["train.steps"]) > step > 0
    return {"step": step, "losses": losses[step:], "words": words, "settings": settings}


def metrics(run: str, name: str) -> list[float]:
    """Return one metric of all records that have it."""
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def digests(location: str) -> list[str]:
    """Return one digest per sample of a store: key, pixels, token ids, views and label."""
    from beit.common.store import open_store

    found = []
    for sample in open_store(location):
        digest = hashlib.sha256(f"{sample['key']} {sample['label']}".encode())
        for array in (np.asarray(sample["image"]), sample["token_ids"], sample["views"]):
            digest.update(np.ascontiguousarray(array).tobytes())
        found.append(digest.hexdigest())
    return found


def features(encoder: str) -> list[float]:
    """Return the mean patch of a fixed image, as an encoder sees it."""
    from beit.common.encoder import load_encoder

    ramp = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        return [
            round(value, 6) for value in load_encoder(encoder).eval().forward_features(ramp)[0].mean(dim=0).tolist()
        ]


def keys(file: str) -> list[str]:
    """Return the names of a safetensors file."""
    size = int.from_bytes(Path(file).read_bytes()[:8], "little")
    return sorted(name for name in json.loads(Path(file).read_bytes()[8 : 8 + size]) if name != "__metadata__")


def tokens(tokenizer: str) -> list[int]:
    """Return the words of the same image."""
    from beit.common.tokenizer import load_tokenizer

    ramp = np.arange(16 * 16 * 3).reshape(1, 16, 16, 3) % 256
    return [int(word) for word in load_tokenizer(tokenizer).encode(ramp.astype(np.uint8)).flatten()]


def main(out: Path) -> None:
    """Make everything in the working directory, which must be empty, and copy it to `out`."""
    assert not any(Path().iterdir()), "the working directory must be empty"
    torch.set_num_threads(1)
    write_images(Path("images"), 8)
    write_tars(Path("tars"), (4, 4))
    expected: dict[str, Any] = {}

    expected["tokenizer-run"] = train(["tokenizer", "train", "images"], "tokenizer-run", TOKENIZER)
    expected["tokenizer-run"]["token_ids"] = tokens("tokenizer-run")
    beit("tokenize", "images", "packed", "--tokenizer", "tokenizer-run", *GEOMETRY, "--set", "shard_size=4")
    beit("tokenize", "tars", "over-tars", "--tokenizer", "tokenizer-run", *GEOMETRY)
    for store in ("packed", "over-tars"):
        beit("verify", store)
        expected[store] = {"digests": digests(store)}

    expected["pretrain-run"] = train(["pretrain", "over-tars"], "pretrain-run", PRETRAIN)
    encoder = "pretrain-run/encoder"
    expected["pretrain-run"] |= {"keys": keys(f"{encoder}/model.safetensors"), "features": features(encoder)}

    words = ["finetune", "classification", "tars", "--encoder", encoder, "--val", "tars"]
    model, expected["finetune-run"] = "finetune-run/model", train(words, "finetune-run", FINETUNE)
    beit("evaluate", model, "tars", "--out", "scores.json")
    scores = json.loads(Path("scores.json").read_text())
    expected["finetune-run"] |= {
        "keys": keys(f"{model}/model.safetensors"),
        "scores": {name: scores[name] for name in ("num_images", "top1", "loss")},
        "predictions": [line.split(",")[:2] for line in beit("predict", model, "tars").split()],
    }
    shutil.rmtree(out, ignore_errors=True)
    left_out = shutil.ignore_patterns("tensorboard", "last", "reconstruction.png")
    for name in ("images", "tars", *expected):
        shutil.copytree(name, out / name, ignore=left_out)
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
