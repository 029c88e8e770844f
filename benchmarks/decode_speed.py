"""Is decoding ordinary JPEGs as fast as at another commit? Two processes take turns on the same images.

    python benchmarks/decode_speed.py photos/ --base OTHER/.venv/bin/python

OTHER is a checkout of the commit to compare with, with packages of its own. Each turn decodes a few images and counts
the seconds of the processor; the ratio is the median over pairs of neighbouring turns, so that what else runs on the
machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

_TURN_IMAGES = 12


def main() -> None:
    """Compare this interpreter with another one, or be one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="Folder of JPEGs.")
    parser.add_argument("--base", help="Python of the other checkout.")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--limit", type=int, default=120, help="Images, at most.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _take_turns(arguments.images, arguments.limit)
        return
    found = compare([sys.executable, arguments.base or sys.executable], arguments)
    print(json.dumps(found) if arguments.json else "\n".join(f"{name:32} {value}" for name, value in found.items()))


def compare(interpreters: list[str], arguments: argparse.Namespace) -> dict[str, float]:
    """Return the speed of the first relative to the second, and both in images per second of the processor."""
    options = [str(arguments.images), "--limit", str(arguments.limit), "--child"]
    children = [
        subprocess.Popen([python, __file__, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for python in interpreters
    ]
    found: dict[str, float] = {}
    for way in ("decode_image", "decode_jpeg_unchecked"):
        turns: list[list[float]] = [[], []]
        for pair in range(arguments.pairs + 2):
            for number in (0, 1) if pair % 2 else (1, 0):
                seconds = _turn(children[number], f"{way} {pair}")
                if pair >= 2:  # the first warm up
                    turns[number].append(seconds)
        here, there = turns
        ratios = [other / own for own, other in zip(here, there, strict=True)]
        found |= {
            f"{way}: ratio": round(statistics.median(ratios), 4),
            f"{way}: images/s here": round(_TURN_IMAGES / statistics.median(here), 1),
            f"{way}: images/s base": round(_TURN_IMAGES / statistics.median(there), 1),
        }
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
    return found


def _turn(child: subprocess.Popen[str], order: str) -> float:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(f"{order}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def _take_turns(folder: Path, limit: int) -> None:
    try:
        from beit.common.images.decode import decode_image
        from beit.common.images.jpeg import decode_jpeg_unchecked
    except ImportError:  # before the room for images
        from beit.common.images import decode_image, decode_jpeg_unchecked  # type: ignore[no-redef]
    ways = {
        "decode_image": lambda data: decode_image(data),
        "decode_jpeg_unchecked": lambda data: decode_jpeg_unchecked(data, width=1, height=1),
    }
    images = [path.read_bytes() for path in sorted(folder.rglob("*.jp*g"))[:limit]]
    for line in sys.stdin:
        way, turn = line.split()
        chosen = [images[(int(turn) * _TURN_IMAGES + number) % len(images)] for number in range(_TURN_IMAGES)]
        began = time.process_time()
        for data in chosen:
            ways[way](data)
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
