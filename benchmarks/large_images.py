"""How much memory large images take: the peak of a whole command, its child processes included.

    python benchmarks/large_images.py --case jpeg        200 megapixels to --short-side 512
    python benchmarks/large_images.py --case progressive the same, encoded progressively, with a limit that admits it
    python benchmarks/large_images.py --case tiff        2 gigapixels in tiles, cut with --tile 1024

Images are generated below --folder and removed afterwards. The peak is the largest sum, seen ten times a second, of the
most that each living process of the command has ever held (VmHWM), so that no short peak is missed; pages that several
processes share count for each of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

_SETTINGS = ["--views", "1", "--img-size", "64", "--patch-size", "8"]


def main() -> None:
    """Generate, run, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("jpeg", "progressive", "tiff"), required=True)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/beit-large-images"))
    parser.add_argument("--side", type=int, help="Of the image in px, instead of the one that the case is about.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    source, store = arguments.folder / "images", arguments.folder / "store"
    shutil.rmtree(arguments.folder, ignore_errors=True)
    source.mkdir(parents=True)
    try:
        size, options = _prepare(arguments.case, source, arguments.side)
        command = [sys.executable, "-m", "beit.cli", "tokenize", str(source), str(store), *_SETTINGS, *options]
        found = run_measured([*command, "--workers", str(arguments.workers)])
        found |= {"case": arguments.case, "width": size[0], "height": size[1]}
        found["file_megabytes"] = round(sum(file.stat().st_size for file in source.iterdir()) / 1e6, 1)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    print(json.dumps(found) if arguments.json else "\n".join(f"{name:16} {value}" for name, value in found.items()))
    if found["exit_code"]:
        raise SystemExit(found["exit_code"])


def _prepare(case: str, folder: Path, side: int | None) -> tuple[tuple[int, int], list[str]]:
    """Generate the images of a case; return the size of the large one, and options of the command."""
    Image.fromarray(_noise(600, 800, 0)).save(folder / "small.png")
    if case == "tiff":
        width = height = side or 45_056
        _write_tiff(folder / "large.tif", width, height)
        return (width, height), ["--tile", "1024"]
    width, height = side or 16_384, (side or 16_384) * 3 // 4
    rows = [_photo(64, width, number) for number in range(8)]
    pixels = np.concatenate([rows[number % 8] for number in range(height // 64)])
    Image.fromarray(pixels).save(folder / "large.jpg", quality=90, progressive=case == "progressive")
    admitting = ["--set", "source.max_megapixels=250"] if case == "progressive" else []
    return (pixels.shape[1], pixels.shape[0]), ["--short-side", "512", *admitting]


def _noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _photo(height: int, width: int, seed: int) -> np.ndarray:
    """Return soft shapes under fine noise."""
    soft = Image.fromarray(_noise(max(2, height // 32), max(2, width // 32), seed)).resize((width, height))
    fine = np.random.default_rng(seed).integers(-6, 7, (height, width, 1))
    return np.clip(np.asarray(soft) + fine, 0, 255).astype(np.uint8)


def _write_tiff(path: Path, width: int, height: int) -> None:
    """Write tiles of 512 px, half of them background, as slides have it; few different ones, so that it is quick."""
    import tifffile

    tiles = [_photo(512, 512, number) for number in range(7)] + [np.full((512, 512, 3), 244, np.uint8)] * 7

    def all_tiles() -> object:
        for number in range(-(-width // 512) * -(-height // 512)):
            yield tiles[number * 5 % len(tiles)]

    tifffile.imwrite(
        path, all_tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(512, 512), photometric="rgb",
        compression="jpeg", compressionargs={"level": 90}, bigtiff=True, maxworkers=1,
    )  # fmt: skip


def run_measured(command: list[str]) -> dict[str, object]:
    """Run a command; return its exit code, seconds, and the peak of its memory in megabytes."""
    began = time.monotonic()
    process = subprocess.Popen(command)
    peak = resident = 0
    while process.poll() is None:
        family = _family(process.pid)
        peak = max(peak, sum(_status(pid, "VmHWM") for pid in family))
        resident = max(resident, sum(_status(pid, "VmRSS") for pid in family))
        time.sleep(0.1)
    return {
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "peak_megabytes": round(peak * 1024 / 1e6),
        "resident_megabytes": round(resident * 1024 / 1e6),
    }


def _family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for member in found:
        for tasks in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, tasks.read_text().split())
    return found


def _status(pid: int, name: str) -> int:
    """Return a number of kB that the kernel tells of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


if __name__ == "__main__":
    main()
