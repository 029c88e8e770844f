"""Every objective through the real loop: golden losses, what the run records, online tokens, the probe."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from beit.common.config import config_from_dict
from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.common.tokenizer import load_tokenizer
from beit.common.tokenizers.directory import save_tokenizer
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.common.vit.description import read_encoder_config
from beit.pretrain.config import PretrainConfig
from beit.pretrain.pictures.reconstruction import reconstruction_sheet
from beit.pretrain.train import PretrainTask, run
from beit.tests.support import VOCAB_SIZE, write_bare_store, write_images, write_store, write_tokenizer

WORLD = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
SETTINGS = {
    "model": {"size": "tiny", "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.0},
    "train": {"steps": 3, "global_batch_size": 8, "precision": "fp32", "log_interval_steps": 1},
    "optimizer": {"warmup_steps": 1},
    "reader": {"num_workers": 0},
    "held_out": {"train_images": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("objectives")


@pytest.fixture(scope="module")
def store(folder):
    return write_store(folder)


@pytest.fixture(scope="module")
def bare_store(folder):
    """The same images without tokens."""
    return write_bare_store(folder)


def make_config(**sections):
    merged = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {*SETTINGS, *sections}}
    return config_from_dict(PretrainConfig, merged)


def train(store, path, **sections):
    run(make_config(**sections), store=store.location, run_dir=path)
    return read_metrics(path / "metrics.jsonl")


# Made by this test with torch 2.13 on a CPU; another kernel moves the last digits only.
GOLDEN = {
    "masked_tokens": [2.763058, 2.773093, 2.712017],
    "all_tokens": [2.763693, 2.770223, 2.729938],
    "all_tokens_unmasked": [2.767711, 2.765487, 2.729642],
    "masked_pixels": [0.980387, 0.982419, 0.977843],
    "raw_pixels": [1.258693, 1.274671, 1.385816],
}
SECTIONS = {
    "masked_tokens": {},
    "all_tokens": {"objective": {"kind": "all_tokens"}},
    "all_tokens_unmasked": {"objective": {"kind": "all_tokens"}, "mask": {"mode": "none"}},
    "masked_pixels": {"objective": {"kind": "masked_pixels"}},
    "raw_pixels": {"objective": {"kind": "masked_pixels", "normalize_patches": False}},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses(name, store, tmp_path):
    records = train(store, tmp_path / "run", **SECTIONS[name])
    assert [record["loss"] for record in records if "loss" in record] == pytest.approx(GOLDEN[name], rel=1e-4)
    last = records[-1]
    expected = {"step", "held_out_images", "evaluation_seconds", "evaluation_share"}
    if name.endswith("pixels"):
        expected |= {"held_out_mse", "held_out_mse_se", "mean_mse", "train_mse"}
    else:
        expected |= {"held_out_bits", "held_out_acc", "unigram_bits", "unigram_acc", "train_bits", "train_acc"}
        expected |= {"held_out_bits_se", "below_unigram_se"}
    expected |= {"neighbour_bits"} if name in ("masked_tokens", "all_tokens") else set()
    assert last.keys() == expected


def test_an_encoder_of_pixels_loads_and_says_so(store, tmp_path):
    train(store, tmp_path / "run", objective={"kind": "masked_pixels"})
    config = read_encoder_config(tmp_path / "run")
    assert (config.vocab_size, config.provenance["objective"], config.provenance["tokenizer"]) == (
        None,
        "masked_pixels",
        None,
    )
    assert "pixel_head.weight" in read_encoder_state(tmp_path / "run")
    assert load_encoder(tmp_path / "run").forward_features(torch.zeros(1, 3, 16, 16)).shape == (1, 17, 16)
    sheet = reconstruction_sheet(tmp_path / "run", store=None, tokenizer=None, num_images=2)
    assert sheet.width > 0


def test_pixels_need_no_tokenizer_at_all(bare_store, tmp_path):
    records = train(bare_store, tmp_path / "run", objective={"kind": "masked_pixels"})
    assert records[-1]["held_out_mse"] > 0


def test_online_tokens_are_those_of_the_tokenizer_and_recorded(folder, bare_store, tmp_path):
    tokenizer = str(write_tokenizer(folder / "online tokenizer"))
    config = make_config(tokenizer={"online": tokenizer})
    task = PretrainTask(config, bare_store, WORLD)
    batch = next(iter(task.data.micro_batches(0)))
    assert "token_ids" not in batch
    wanted = load_tokenizer(tokenizer).encode(batch["token_views"]).flatten(1)
    assert torch.equal(task.step.token_ids(batch), wanted)
    with torch.autocast("cpu", torch.bfloat16):  # of the training step, not of the tokenizer
        assert torch.equal(task.step.token_ids(batch), wanted)
    records = train(bare_store, tmp_path / "run", tokenizer={"online": tokenizer})
    assert records[-1]["neighbour_bits"] > 0
    encoder = read_encoder_config(tmp_path / "run")
    assert encoder.vocab_size == VOCAB_SIZE
    assert encoder.provenance["tokenizer_online"] is True
    assert encoder.provenance["tokenizer_fingerprint"] == load_tokenizer(tokenizer).fingerprint
    assert encoder.provenance["views"] == 0
    sheet = reconstruction_sheet(tmp_path / "run", store=None, tokenizer=None, num_images=2)
    assert sheet.width > 0


def test_an_online_tokenizer_of_one_side_is_asked_for_no_other(folder, bare_store, tmp_path, monkeypatch):
    tokenizer = str(write_tokenizer(folder / "online tokenizer"))
    monkeypatch.setattr("beit.common.tokenizers.dvae.DiscreteVAE.img_size", 64)
    with pytest.raises(InputError, match=r"takes images of 64 px only and gives 8 x 8 tokens, where .* is 4;"):
        train(bare_store, tmp_path / "run", tokenizer={"online": tokenizer})
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_under_the_same_name_does_not_continue_a_run(folder, bare_store, tmp_path):
    path = write_tokenizer(tmp_path / "tokenizer")
    train(bare_store, tmp_path / "run", tokenizer={"online": str(path)})
    state = {name: tensor + 0.01 for name, tensor in load_file(path / "model.safetensors").items()}
    shape = DiscreteVAEConfig(vocab_size=VOCAB_SIZE, width=8, num_blocks=1, code_dim=4)
    save_tokenizer(path, state, shape, training={"data": "none"})
    with pytest.raises(InputError, match="data was .*, is "):
        train(bare_store, tmp_path / "run", tokenizer={"online": str(path)})


def test_online_and_stored_runs_share_order_and_masks(folder, store, bare_store):
    online = make_config(tokenizer={"online": str(write_tokenizer(folder / "online tokenizer"))})
    stored, fresh = (
        next(iter(PretrainTask(config, data, WORLD).data.micro_batches(0)))
        for config, data in ((make_config(), store), (online, bare_store))
    )
    assert [name.split("/")[-1] for name in stored["sample_ids"]] == [
        name.split("/")[-1] for name in fresh["sample_ids"]
    ]
    assert torch.equal(stored["bool_masked_pos"], fresh["bool_masked_pos"])


def test_a_store_without_tokens_needs_a_tokenizer_online(bare_store, store, tmp_path):
    with pytest.raises(InputError, match="tokenizer.online=NAME"):
        train(bare_store, tmp_path / "a")
    with pytest.raises(InputError, match=r"holds 3 views.*--views 0"):
        train(store, tmp_path / "b", tokenizer={"online": "mini"})
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"mask": {"mode": "none"}}, "all_tokens"),
        ({"objective": {"kind": "masked_pixels"}, "tokenizer": {"online": "mini"}}, "leave it out"),
        ({"objective": {"kind": "tokens"}}, "objective.kind"),
        ({"probe": {"test": "x"}}, "needs probe.data"),
    ],
)
def test_contradictions_are_refused(sections, message):
    with pytest.raises(InputError, match=message):
        make_config(**sections)


def test_the_probe_names_a_block_that_the_encoder_keeps(folder, store, tmp_path):
    labelled = write_images(folder / "labelled", 40, classes=("blue", "red"))
    records = train(store, tmp_path / "run", probe={"data": str(labelled)})
    train(store, tmp_path / "without")
    probed, without = (read_encoder_state(tmp_path / name) for name in ("run", "without"))
    assert all(torch.equal(tensor, without[name]) for name, tensor in probed.items())
    last = records[-1]
    assert last["probe_linear_acc"] == max(last["probe_linear/0"], last["probe_linear/1"])
    assert last["probe_linear_acc"] > 0.8  # redness alone tells the classes apart
    assert {"probe_knn/0", "probe_knn/1", "probe_chance"} <= last.keys()
    assert read_encoder_config(tmp_path / "run").best_block == last["probe_best_block"]


def test_a_probe_of_one_class_is_refused_before_the_run_begins(folder, store, tmp_path):
    labelled = write_images(folder / "one class", 10, classes=("blue",))
    with pytest.raises(InputError, match="two classes"):
        train(store, tmp_path / "run", probe={"data": str(labelled)})
    assert not (tmp_path / "run").exists()


def test_a_run_says_at_its_end_what_it_has_learned(store, tmp_path, caplog):
    caplog.set_level("INFO")
    train(store, tmp_path / "run")
    said = [record.message for record in caplog.records]
    assert any(message.startswith("step 3: held-out") for message in said)
    assert any(message.startswith("verdict: held-out") for message in said)
    assert np.isfinite(read_metrics(tmp_path / "run/metrics.jsonl")[-1]["train_bits"])
