"""Runs of every kind as files alone, small and whole, for tests of reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EARLIER = Path(__file__).parent / "golden/written_at_365d2fa"
TOKENIZER = {"name": "words", "fingerprint": "ab" * 32}
STORE_SHA256 = "cd" * 32
_SHAPE = {"depth": 2, "embed_dim": 8, "num_heads": 2, "img_size": 32, "patch_size": 8}


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Write a document, and the folder it lies in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


def earlier_run(folder: Path, name: str) -> Path:
    """Copy a run that an earlier version wrote: pretrain-run, finetune-run or tokenizer-run."""
    shutil.copytree(EARLIER / name, folder / name)
    return folder / name


def start(*words: str, time: str = "2026-05-04T10:00:00+0000", resumed_from: str | None = None) -> dict[str, Any]:
    """What environment.json says of a start."""
    return {
        "time": time,
        "command": ["/somewhere/cli.py", *words],
        "beit": "0.1.0",
        "git_commit": "e" * 40,
        "python": "3.11.7",
        "platform": "Linux",
        "packages": {"torch": "2.13.0"},
        "world_size": 2,
        "device": "cpu",
        "resumed_from": resumed_from,
        "changed": {},
    }


def write_run(
    folder: Path,
    *,
    settings: str,
    starts: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, float]] = (),
) -> Path:
    """Write what every run has."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(settings)
    write_json(folder / "environment.json", {"run_id": "0" * 16, "starts": list(starts)})
    if records:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def steps(number: int, **measured: float) -> list[dict[str, float]]:
    """Records of training steps, 10 apart, half an epoch each; the last one is followed by an evaluation."""
    logged = [
        {
            "step": 10 * place,
            "epoch": place / 2,
            "loss": 3.0 / place,
            "lr": 0.1,
            "images_per_second": 100.0 + place,
            "peak_memory_bytes": 5e8,
            "data_wait": 0.02,
        }
        for place in range(1, number + 1)
    ]
    return [*logged, {"step": 10 * number, **measured}]


def pretraining(folder: Path, *, store: str = "/nowhere/store", seed: int = 0) -> Path:
    """A pre-training of 30 steps."""
    measured = {"held_out_bits": 5.0, "held_out_bits_se": 0.1, "held_out_acc": 0.2, "held_out_images": 64.0}
    zero_lines = {"unigram_bits": 8.0, "neighbour_bits": 7.0, "unigram_acc": 0.05}
    command = start("pretrain", store, str(folder), "--recipe", "demo", "--set", f"train.seed={seed}")
    settings = f'[mask]\nmode = "blockwise"\n[train]\nglobal_batch_size = 32\nseed = {seed}\nsteps = 30\n'
    write_run(folder, settings=settings, starts=[command], records=steps(3, **measured, **zero_lines))
    write_json(folder / "data.json", {"store": store, "store_sha256": STORE_SHA256, "views": 4, "seed": seed})
    origin = {
        "step": 30,
        "total_steps": 30,
        "store": store,
        "store_sha256": STORE_SHA256,
        "views": 4,
        "tokenizer": TOKENIZER["name"],
        "tokenizer_fingerprint": TOKENIZER["fingerprint"],
        "metrics": measured | zero_lines,
    }
    description = {"format": "beit-encoder", "architecture": _SHAPE, "provenance": origin, "weights_sha256": "9" * 64}
    write_json(folder / "encoder/config.json", description)
    return folder


def fine_tuned(folder: Path, *, encoder: str = "random", top1: float = 0.8, before: Any = None) -> Path:
    """A classification of 30 steps, of four classes, measured on 100 images."""
    command = start("finetune", "classification", "labelled", str(folder), "--encoder", encoder)
    settings = f'encoder = "{encoder}"\n[classifier]\npooling = "mean"\n[train]\nglobal_batch_size = 8\nseed = 3\n'
    write_run(folder, settings=settings, starts=[command], records=steps(3, val_top1=top1, val_loss=0.5))
    origin = {
        "step": 30,
        "total_steps": 30,
        "encoder": encoder,
        "encoder_provenance": before,
        "data": "/there/labelled",
        "num_labels": 20,
        "source_sha256": "1" * 64,
        "validation_data": "/there/test",
        "metrics": {"top1": top1, "num_images": 100},
    }
    description = {"architecture": _SHAPE, "class_names": ["a", "b", "c", "d"], "provenance": origin}
    for name in ("model", "last"):
        write_json(folder / name / "config.json", description)
    return folder


def segmented(folder: Path) -> Path:
    """A segmentation of 30 steps with an evaluation by `beit evaluate`."""
    settings = 'encoder = "random"\n[head]\nkind = "fpn"\n[train]\nglobal_batch_size = 8\nsteps = 30\n'
    measured = {"val_miou": 0.4, "val_pixel_accuracy": 0.7}
    write_run(folder, settings=settings, starts=[start("finetune", "segmentation")], records=steps(3, **measured))
    origin = {"step": 30, "total_steps": 30, "encoder": "random", "data": "/there/masks", "metrics": {"miou": 0.4}}
    for name in ("model", "last"):
        write_json(folder / name / "config.json", {"architecture": _SHAPE, "provenance": origin})
    found = {"miou": 0.42, "miou_interval": [0.39, 0.46], "pixel_accuracy": 0.71, "chance": 0.03, "num_images": 50}
    write_json(folder / "evaluation.json", found | {"data": "/there/masks/test"})
    return folder


def probed(folder: Path, *, encoder: str = "random", best: float = 0.6) -> Path:
    """A linear probe and k-NN of two blocks."""
    settings = f'encoder = "{encoder}"\n[classifier]\npooling = "mean"\n'
    write_run(folder, settings=settings, starts=[start("finetune", "linear-probe")])
    common = {
        "encoder": encoder,
        "data": "/there/labelled",
        "num_train_images": 20,
        "source_sha256": "1" * 64,
        "num_images": 100,
        "num_classes": 4,
    }
    common |= {"validation_data": "/there/test", "best_block": 1, "top1": best}
    blocks = [{"block": 0, "top1": 0.3}, {"block": 1, "top1": best}]
    write_json(folder / "linear-probe.json", common | {"task": "linear-probe", "blocks": blocks})
    by_k = [{"block": row["block"], "top1": {"1": 0.1, "5": row["top1"]}} for row in blocks]
    write_json(folder / "knn.json", common | {"task": "knn", "blocks": by_k, "best_k": 5})
    return folder


def tokenizer(folder: Path, architecture: str = "vqkd") -> Path:
    """A tokenizer that was trained here; by k-means it keeps no records."""
    metrics = {"eval_teacher_cosine": 0.9, "eval_words_used": 12.0, "eval_agreement": 0.5}
    metrics |= {"eval_agreement_by_chance": 0.1, "eval_images": 64.0}
    if architecture == "kmeans":
        metrics = {"psnr": 25.0, "block_mean_psnr": 20.0, "words_used": 16.0, "images": 64.0}
    settings = "[clustering]\nsteps = 20\n" if architecture == "kmeans" else "[decoder]\ndepth = 1\n"
    records = [] if architecture == "kmeans" else steps(3, **metrics)
    write_run(folder, settings=settings, starts=[start("tokenizer", "train")], records=records)
    training = {"source": "/there/images", "num_train_images": 50, "num_held_out_images": 4, "metrics": metrics}
    if architecture == "vqkd":
        training |= {"step": 30, "total_steps": 30}
        training["teacher"] = {"name": "runs/dino", "dim": 64, "img_size": 32, "block": None, "fingerprint": "7" * 64}
    document = {"format": "beit-tokenizer", "architecture": architecture, "fingerprint": TOKENIZER["fingerprint"]}
    write_json(folder / "config.json", document | {"model": {"vocab_size": 16}, "training": training})
    return folder


ALL = {
    "pre-training": pretraining,
    "classification": fine_tuned,
    "segmentation": segmented,
    "probe": probed,
    "tokenizer": tokenizer,
}
"""By kind."""
