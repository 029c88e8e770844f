"""The run of another command is refused by the name of it, wherever a run is taken; nothing in it is touched."""

import shutil
from pathlib import Path

import pytest

from beit.common.config import config_to_toml
from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.kinds import (
    CLASSIFICATION,
    PRETRAIN,
    PROBE,
    SEGMENTATION,
    TOKENIZER,
    command_of,
    require_command,
)
from beit.common.runs.learning_curves import learning_sheet
from beit.common.runs.run_dir import check_directory, check_run, open_run
from beit.finetune.compare.runs import read_runs
from beit.finetune.config import FinetuneConfig
from beit.finetune.segmentation.config import SegmentationConfig
from beit.pretrain.config import PretrainConfig
from beit.pretrain.stored_run import open_stored_run
from beit.tests.support import files_of
from beit.tokenize.clustering.config import ClusteringConfig
from beit.tokenize.distillation.config import DistillationConfig
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig

SETTINGS = {
    PRETRAIN: PretrainConfig(),
    CLASSIFICATION: FinetuneConfig(),
    SEGMENTATION: SegmentationConfig(),
    f"{TOKENIZER}dvae": TokenizerTrainConfig(),
    f"{TOKENIZER}kmeans": ClusteringConfig(),
    f"{TOKENIZER}vqkd": DistillationConfig(),
}
GOLDEN = Path(__file__).parents[3] / "golden/written_at_365d2fa"


def write_run(folder: Path, command: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.toml").write_text(config_to_toml(SETTINGS[command]))
    return folder


@pytest.mark.parametrize("command", SETTINGS)
def test_a_run_of_every_command_is_known_and_refused_by_all_others(tmp_path: Path, command: str) -> None:
    run = write_run(tmp_path / "run", command)
    assert command_of(run) == command
    before = files_of(tmp_path)
    world = World(rank=0, local_rank=0, world_size=1, device=None)  # type: ignore[arg-type]
    for other, config in SETTINGS.items():
        if other == command:
            require_command(run, other)
            check_run(run, config, resume="auto")
            continue
        said = (
            f"^{run} holds a run of {command}, not {other}; run that command to go on with it, or name another folder"
        )
        with pytest.raises(InputError, match=said):
            require_command(run, other)
        with pytest.raises(InputError, match=said):
            open_run(run, config, world=world, resume="auto")
    assert files_of(tmp_path) == before


def test_runs_of_before_are_known() -> None:
    found = [command_of(GOLDEN / f"{name}-run") for name in ("pretrain", "finetune", "tokenizer")]
    assert found == [PRETRAIN, CLASSIFICATION, f"{TOKENIZER}dvae"]


@pytest.mark.parametrize("command", [CLASSIFICATION, SEGMENTATION])
@pytest.mark.parametrize("left", ["knn.json", "features", "segmentation-probe.json"])
def test_a_probe_is_told_from_the_training_whose_settings_it_has(tmp_path: Path, command: str, left: str) -> None:
    run = write_run(tmp_path / "run", command)
    with pytest.raises(InputError, match=f"holds a run of {command}, not {PROBE}"):
        require_command(run, PROBE)
    shutil.rmtree(run / "checkpoints")
    require_command(run, PROBE)  # killed before it left anything, it may be either
    require_command(run, command)
    (run / left).mkdir()
    with pytest.raises(InputError, match=f"holds a run of {PROBE}, not {command}"):
        require_command(run, command)


def test_commands_that_look_at_a_run_name_the_kind_that_they_want(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", f"{TOKENIZER}kmeans")
    with pytest.raises(InputError, match="holds a run of .*kmeans, not beit pretrain; name a RUN of beit pretrain$"):
        open_stored_run(run, None)
    with pytest.raises(InputError, match="but of beit tokenizer train --kind kmeans, which has no curve"):
        learning_sheet([run])
    with pytest.raises(InputError, match="which has no row here; beit tokenizer compare holds"):
        read_runs(run)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("store.json", "{}", "a token store"),
        ("config.json", '{"format": "beit-encoder"}', "an encoder or a model"),
        ("config.json", '{"format": "beit-tokenizer"}', "a tokenizer"),
    ],
)
def test_what_is_no_run_is_named_too(tmp_path: Path, file: str, text: str, words: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=rf"is not empty and not a run \(no config.toml\) but {words}; name a new"):
        check_directory(tmp_path, resume="auto")


def test_settings_that_nobody_knows_are_of_no_command(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("answer = 42\n")
    assert command_of(tmp_path) is None and command_of(tmp_path / "none") is None
    (tmp_path / "config.toml").write_text("answer = ")
    assert command_of(tmp_path) is None
