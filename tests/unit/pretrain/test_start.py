"""A pre-training that continues an encoder: what it keeps, what is new, what it refuses, and how it goes on."""

import json
import shutil
import tomllib
from dataclasses import replace

import pytest
import torch

from beit.common.config import config_from_dict, flatten
from beit.common.encoder import load_encoder, read_encoder_config, read_encoder_state, save_model
from beit.common.errors import InputError, ResumableStop
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.ranges import ValueRange
from beit.common.runs.layout import INIT
from beit.common.runs.metrics import read_metrics
from beit.common.vit.description import EncoderConfig
from beit.common.vit.position_bias import TABLE_KEY
from beit.pretrain.config import PretrainConfig
from beit.pretrain.model import MaskedImageModel
from beit.pretrain.signal.verdict import verdict
from beit.pretrain.start import describe_pixels, starting_point, trains_position_tables
from beit.pretrain.train import run
from beit.tests.continued import ASLEEP, DINO, PIXELS, save_random, settings, task_of
from beit.tests.encoders import save_classifier, save_segmenter
from beit.tests.support import VOCAB_SIZE, write_bare_store
from beit.tests.unit.pretrain.test_train import stop_after_first_log


def began(task):
    """Build the model, and return what it began from."""
    assert task.model is not None
    return task.start.continued


def bits(path):
    return [record["held_out_bits"] for record in read_metrics(path / "metrics.jsonl") if "held_out_bits" in record]


def test_with_the_same_words_and_no_learning_nothing_changes(store, first, tmp_path, caplog):
    caplog.set_level("INFO")
    run(settings(first / "encoder", **ASLEEP), store=store.location, run_dir=tmp_path / "run")
    before, after = read_encoder_state(first), read_encoder_state(tmp_path / "run")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert bits(tmp_path / "run")[-1] == pytest.approx(bits(first)[-1], abs=1e-6)
    assert f"begins from {first / 'encoder'} (sha256 " in caplog.text
    assert "39 of 39 tensors and 100.0 % of the parameters; new: nothing" in caplog.text


def test_it_is_known_whether_a_run_trains_position_tables(store, first, dino):
    own = [(first / "encoder", "auto", adapt) for adapt in ("all", "last:1", "lora:1")]
    others = [(dino, bias, adapt) for bias in ("none", "shared", "per_block") for adapt in ("all", "last:1", "lora:1")]
    for encoder, bias, adapt in [(None, "none", "all"), (None, "per_block", "all"), *own, *others]:
        task = task_of(store, encoder, adapt=adapt, model={"pos_bias": bias})
        trained = [name for name, weight in task.model.named_parameters() if weight.requires_grad]
        is_trained = any(name.endswith(TABLE_KEY) for name in trained)
        assert trains_position_tables(task.start) == is_trained, (encoder, bias, adapt)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_an_encoder_of_another_kind_and_size_is_still_what_it_was(store, dino, tmp_path, zero_stage):
    config = settings(dino, **ASLEEP, deepspeed={"zero_stage": zero_stage})
    run(config, store=store.location, run_dir=tmp_path / "run")
    found, images = read_encoder_config(tmp_path / "run"), torch.randn(2, 3, 16, 16)
    kept = {"img_size": 16, "use_mask_token": True, "drop_path": 0.1, "init": "pretrain"}
    assert found.architecture == replace(DINO, **kept) and found.normalization == PIXELS
    before = load_encoder(dino, img_size=16).forward_features(images)
    assert torch.allclose(load_encoder(tmp_path / "run").forward_features(images), before, atol=1e-6)


def test_what_is_new_is_named_counted_and_kept_with_the_run_and_the_encoder(store, dino, tmp_path, caplog):
    caplog.set_level("INFO")
    run(settings(dino, train={"steps": 1}, **ASLEEP), store=store.location, run_dir=tmp_path / "run")
    total = len(read_encoder_state(tmp_path / "run"))
    assert f"{total - 3} of {total} tensors" in caplog.text
    assert "new: mask token, head of 16 words; positions resized from 8 x 8 patches" in caplog.text
    written = json.loads((tmp_path / "run" / INIT).read_text())
    told = read_encoder_config(tmp_path / "run").provenance["init"]
    for document in (written, told):
        assert document["counts"]["tensors"] == [total - 3, total]
        assert document["new"] == ["mask token", "head of 16 words"] and len(document["sha256"]) == 64
        assert document["encoder"] == str(dino)


def test_the_last_norm_is_applied_once(store, dino):
    task = task_of(store, dino)
    model, images = task.model.eval(), torch.randn(2, 3, 16, 16)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 3] = True
    logits = model(images, mask).logits[:, 0]
    assert torch.allclose(logits, model.lm_head(model.forward_features(images, mask)[:, 4]), atol=1e-5)
    assert isinstance(model, MaskedImageModel) and model.norm.eps == DINO.layer_norm_eps


def test_the_chain_of_encoders_is_told(store, first, tmp_path):
    run(settings(first, train={"steps": 1}, **ASLEEP), store=store.location, run_dir=tmp_path / "second")
    run(settings(tmp_path / "second", train={"steps": 1}, **ASLEEP), store=store.location, run_dir=tmp_path / "third")
    told = read_encoder_config(tmp_path / "third").provenance
    assert told["init"]["provenance"]["init"]["provenance"]["step"] == 4


def test_other_words_replace_the_head_only(store, first, tmp_path):
    state, stored = read_encoder_state(first), read_encoder_config(first)
    known = {"tokenizer": "mine", "tokenizer_fingerprint": "0" * 64}
    cases = {
        "same": (stored.provenance, VOCAB_SIZE, []),
        "others": (known, VOCAB_SIZE, ["head of 16 words (the encoder's are those of mine)"]),
        "unknown": ({}, VOCAB_SIZE, ["head of 16 words (whose words the encoder's head predicts is not known)"]),
        "more": (stored.provenance, 20, ["head of 16 words (the encoder's has 20)"]),
    }
    for name, (provenance, words, new) in cases.items():
        rows = torch.zeros(words, 16)
        tensors = state | ({} if words == VOCAB_SIZE else {"lm_head.weight": rows, "lm_head.bias": rows[:, 0]})
        save_model(tmp_path / name, tensors, replace(stored, provenance=provenance, vocab_size=words))
        task = task_of(store, tmp_path / name)
        continued = began(task)
        assert list(continued.new) == new
        assert list(continued.left_out) == ([f"head of {words} words"] if new else [])
        assert torch.equal(task.model.norm.weight, state["norm.weight"])
        assert torch.equal(task.model.mask_token, state["mask_token"])
        assert torch.equal(task.model.lm_head.weight, state["lm_head.weight"]) is not bool(new)


@pytest.mark.parametrize(
    ("tokenizer", "left_out", "is_kept"),
    [("dall-e", [], True), ("dall-e", ["cls_pt_layers.0.norm1.weight"], False), ("mine", [], False)],
)
def test_the_released_beit_predicts_the_words_of_dall_e(tokenizer, left_out, is_kept):
    from beit.pretrain.objective import TokenSource
    from beit.pretrain.start import _other_words

    imported = {"family": "BEiT", "left_out": left_out}
    encoder = EncoderConfig(
        architecture=DINO, normalization=PIXELS, task="pretrain", vocab_size=8192, provenance=imported
    )
    assert (_other_words(encoder, TokenSource(tokenizer, "f" * 64, 8192)) == "") is is_kept


def test_fine_tuned_models_are_taken_without_their_heads(tmp_path):
    save_classifier(tmp_path / "classifier", class_names=["a", "b"])
    save_segmenter(tmp_path / "segmenter", class_names=["a", "b"])
    store = write_store_of(tmp_path, img_size=32, patch_size=8)
    for name, left_out in (("classifier", ("fc_norm", "head of 2 classes")), ("segmenter", None)):
        continued = began(task_of(store, tmp_path / name))
        assert continued.new == ("mask token", "last norm", f"head of {VOCAB_SIZE} words")
        assert continued.left_out == left_out if left_out else continued.left_out


def write_store_of(folder, **geometry):
    from beit.common.store import open_store
    from beit.tests.support import write_images, write_tokenizer
    from beit.tokenize.config import TokenizeConfig
    from beit.tokenize.run import run_tokenize

    config = TokenizeConfig(
        tokenizer=str(write_tokenizer(folder / "words")), views=1, shard_size=64, threads=1, workers=1, **geometry
    )
    run_tokenize(config, str(write_images(folder / "pictures", 80)), folder / "of-size")
    return open_store(folder / "of-size")


def test_a_position_bias_that_is_asked_for_starts_at_zero_and_changes_nothing(store, dino):
    images = torch.randn(2, 3, 16, 16)
    before = task_of(store, dino).model.eval().forward_features(images)
    for mode in ("shared", "per_block"):
        task = task_of(store, dino, model={"pos_bias": mode})
        assert "position bias (of zeros)" in began(task).new
        assert task.vit.pos_bias == mode
        assert torch.allclose(task.model.eval().forward_features(images), before, atol=1e-6)


def test_what_the_source_was_probed_and_evaluated_by_stays(store, tmp_path):
    path = save_random(tmp_path / "probed", DINO, best_block=1, crop_pct=0.9)
    run(settings(path, train={"steps": 1}), store=store.location, run_dir=tmp_path / "run")
    found = read_encoder_config(tmp_path / "run")
    assert (found.best_block, found.crop_pct) == (1, 0.9)


def test_pixels_are_predicted_and_tokens_computed_online_from_an_encoder_too(store, dino, tmp_path):
    pixels = {"objective": {"kind": "masked_pixels"}}
    run(settings(dino, train={"steps": 1}, **pixels), store=store.location, run_dir=tmp_path / "pixels")
    assert read_encoder_config(tmp_path / "pixels").provenance["init"]["new"] == ["mask token", "head of pixels"]
    again = began(task_of(store, tmp_path / "pixels", **pixels))
    assert again.new == () and began(task_of(store, tmp_path / "pixels")).left_out == ("head of pixels",)
    bare = write_bare_store(tmp_path)
    online = {"tokenizer": {"online": str(tokenizer_of(store))}}
    run(settings(dino, train={"steps": 1}, **online), store=bare.location, run_dir=tmp_path / "online")
    assert read_encoder_config(tmp_path / "online").provenance["init"]["new"] == ["mask token", "head of 16 words"]


def tokenizer_of(store):
    return store.info.tokenizer.name


def test_what_was_in_force_is_recorded_and_is_a_recipe(store, dino, tmp_path):
    config = settings(dino, train={"steps": 1})
    run(config, store=store.location, run_dir=tmp_path / "run")
    values = tomllib.loads((tmp_path / "run/config.toml").read_text())
    recorded = flatten(values)
    assert recorded["init"] == str(dino) and recorded["data.mean"] == list(PIXELS.mean)
    assert (recorded["model.embed_dim"], recorded["model.depth"], recorded["model.pos_bias"]) == (24, 3, "none")
    assert "model.size" not in recorded and recorded["model.use_abs_pos_emb"] is True
    again = starting_point(config_from_dict(PretrainConfig, values), store.info)
    assert again == starting_point(config, store.info)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"size": "base"}}, "the settings are for a model of 768 wide"),
        ({"model": {"init_values": 0.1}}, r"model.init_values \(0.1\) must be 0, as the encoder"),
        ({"model": {"mlp_ratio": 2.0}}, r"model.mlp_ratio \(2.0\) must be 4.0"),
        ({"model": {"use_abs_pos_emb": False}}, r"model.use_abs_pos_emb \(False\) must be True"),
        ({"data": {"mean": [0.5, 0.5, 0.5]}}, r"data.mean \(\[0.5, 0.5, 0.5\]\) must be \[0.1, 0.2, 0.3\]"),
        ({"data": {"std": [0.5, 0.5, 0.5]}}, "data.std"),
    ],
)
def test_a_setting_that_contradicts_the_encoder_is_refused(store, dino, tmp_path, sections, message):
    with pytest.raises(InputError, match=message) as error:
        run(settings(dino, **sections), store=store.location, run_dir=tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_encoders_that_will_not_do_are_one_line_each(store, dino, first, tmp_path):
    state, stored = read_encoder_state(dino), read_encoder_config(dino)
    torch.save({}, tmp_path / "dino.pth")
    save_random(tmp_path / "patches", replace(DINO, patch_size=8))
    save_model(tmp_path / "part", {k: v for k, v in state.items() if "mlp" not in k}, stored)
    save_model(tmp_path / "broken", state | {"cls_token": state["cls_token"] * float("nan")}, stored)
    wrong = {
        "patches": "has patches of 8 px, and the store patches of 4 px; make a store with beit tokenize --patch-size 8",
        "dino.pth": "run beit import .*dino.pth encoders/dino",
        "nowhere": "there is no such folder",
        "part": r"only 33 of the 45 tensors .*mlp.fc1.weight is not there",
        "broken": "cls_token holds numbers that are not finite",
    }
    for name, message in wrong.items():
        with pytest.raises(InputError, match=message) as error:
            run(settings(tmp_path / name), store=store.location, run_dir=tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="pos_bias 'shared', which cannot become 'none'"):
        run(settings(first, model={"pos_bias": "none"}), store=store.location, run_dir=tmp_path / "run")


def test_a_stopped_run_goes_on_bit_for_bit_when_the_encoder_is_gone(store, dino, tmp_path):
    config = settings(dino, layer_decay=0.7)
    run(config, store=store.location, run_dir=tmp_path / "whole")
    with pytest.raises(ResumableStop, match="stopped at step"):
        stop_after_first_log(config, store, tmp_path / "parts")
    assert (tmp_path / "parts/checkpoints/latest").exists()
    before = (tmp_path / "parts" / INIT).read_bytes()
    dino.rename(tmp_path / "moved")
    run(config, store=store.location, run_dir=tmp_path / "parts")
    whole, parts = (read_encoder_state(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (tmp_path / "parts" / INIT).read_bytes() == before
    told = [read_encoder_config(tmp_path / name).provenance["init"] for name in ("whole", "parts")]
    assert told[0] == told[1]
    # The same weights under another name, and from another run's checkpoint: it is known what it began from.
    run(settings(tmp_path / "moved", layer_decay=0.7), store=store.location, run_dir=tmp_path / "parts")
    other = settings(dino, layer_decay=0.7, train={"steps": 5})
    run(other, store=store.location, run_dir=tmp_path / "longer", resume=str(tmp_path / "parts"))
    assert read_encoder_config(tmp_path / "longer").provenance["init"]["new"] == ["mask token", "head of 16 words"]


def test_a_copied_run_goes_on_elsewhere_without_the_encoder(store, dino, tmp_path):
    copy = {"run": {"sync_to": str(tmp_path / "copy")}}
    run(settings(dino, train={"steps": 2}, **copy), store=store.location, run_dir=tmp_path / "here")
    shutil.rmtree(dino)
    shutil.rmtree(tmp_path / "here")
    run(settings(dino, train={"steps": 2}, **copy), store=store.location, run_dir=tmp_path / "here")
    assert (tmp_path / "here" / INIT).is_file()


def test_a_run_does_not_change_what_it_began_from(store, dino, first, tmp_path):
    config = settings(dino, train={"steps": 2})
    run(config, store=store.location, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match=r"began from --init .*dino \(sha256 .* is another encoder"):
        run(settings(first, train={"steps": 2}), store=store.location, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="the run began from --init .*dino; name that again"):
        run(settings(train={"steps": 2}), store=store.location, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="the run began from --init .*dino; name that again"):
        run(settings(train={"steps": 2}), store=store.location, run_dir=tmp_path / "new", resume=str(tmp_path / "run"))
    with pytest.raises(InputError, match="init was None, is "):
        run(settings(dino), store=store.location, run_dir=first)


def test_a_run_without_a_checkpoint_does_not_begin_again_from_other_weights(store, dino, tmp_path):
    config = settings(dino, train={"steps": 2})
    run(config, store=store.location, run_dir=tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    state = read_encoder_state(dino)
    save_model(dino, state | {"cls_token": state["cls_token"] + 1}, read_encoder_config(dino))
    with pytest.raises(InputError, match="is not the encoder any more that this run began from"):
        run(config, store=store.location, run_dir=tmp_path / "run")
    shutil.rmtree(dino)
    with pytest.raises(InputError, match="there is no such folder"):
        run(config, store=store.location, run_dir=tmp_path / "run")


def test_lower_layers_learn_more_slowly_if_asked_to(store, dino, first):
    groups = task_of(store, dino, layer_decay=0.5).param_groups()
    assert sorted({group["lr_scale"] for group in groups}) == [0.5**layer for layer in (4, 3, 2, 1, 0)]
    task = task_of(store, first, layer_decay=0.5)
    scales = {id(value): group["lr_scale"] for group in task.param_groups() for value in group["params"]}
    named = dict(task.model.named_parameters())
    top = ("lm_head.weight", "norm.weight", "rel_pos_bias.relative_position_bias_table")
    assert {scales[id(named[name])] for name in top} == {1.0}
    assert {scales[id(named[name])] for name in ("mask_token", "cls_token", "patch_embed.proj.weight")} == {0.125}
    assert len({group["lr_scale"] for group in task_of(store, first).param_groups()}) == 1


def test_a_continued_run_is_not_advised_as_one_from_scratch(store, dino, tmp_path, caplog):
    caplog.set_level("INFO")
    run(settings(dino, train={"steps": 1}), store=store.location, run_dir=tmp_path / "run")
    assert "from scratch" not in caplog.text and "random weights" not in caplog.text
    assert "learning rate and length may not fit" in caplog.text and "the size of the model" not in caplog.text
    assert task_of(store, dino).quicker(1.0) is None
    told = {"unigram_bits": 3.0, "held_out_acc": 0.1, "unigram_acc": 0.1, "below_unigram_se": 0.01}
    for loss, words in ((2.9, "probing both encoders"), (3.0, "not learned yet"), (3.5, "if the head is new")):
        line = verdict(told | {"held_out_bits": loss}, is_continued=True)
        assert words in line and "random weights" not in line


def test_a_store_decoded_otherwise_than_the_encoders_images_is_said(store, dino):
    start = starting_point(settings(dino), store.info)

    def said(trained, here):
        source = replace(start.continued.source, decoding=trained)
        return describe_pixels(replace(start, continued=replace(start.continued, source=source)), here)

    found = Decoding(value_range=ValueRange.parse("percentile:1,99", (10.0, 900.0)), alpha="white")
    assert said(USUAL, USUAL) == said(found, found) == said(USUAL, Decoding(channels="grey")) == ""
    assert said(found, replace(found, value_range=ValueRange.parse((10.0, 900.0)), max_pixels=1)) == ""
    line = said(USUAL, found)
    assert (
        f"decoded with range [10.0, 900.0], alpha white, those that {dino} was trained on with range dtype, alpha drop"
        in line
    )
    assert "\n" not in line
