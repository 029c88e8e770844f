"""How much of a model is trained, and that updates of low rank begin and end as plain weights."""

import copy

import pytest
import torch

from beit.common.errors import InputError
from beit.common.vit.adaptation import Adaptation, adapt, merge_state, parameters_in_words
from beit.common.vit.config import ViTConfig, require_one_limit
from beit.common.vit.lora import LoraLinear
from beit.common.vit.param_groups import param_groups
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def masked_model(**shape):
    torch.manual_seed(0)
    return MaskedImageModel(ViTConfig(**SHAPE | {"drop_path": 0.5} | shape), vocab_size=32, num_masked=6).eval()


def classifier(**shape):
    torch.manual_seed(0)
    config = ViTConfig(**SHAPE | shape, pos_bias="per_block", use_mask_token=False, init="finetune")
    return ImageClassifier(config, num_classes=10, head_init_scale=1.0).eval()


def adapted(model, setting, **options):
    adapt(model, Adaptation.parse(setting), **options)
    return model


def with_updates(model):
    """Give every update of an adapted model something to add."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_b, std=0.1)
    return model


def predict(model, seed=7):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    if isinstance(model, MaskedImageModel):
        return model(images, torch.arange(16).expand(4, 16) % 3 == 0).logits
    return model(images)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    "setting", ["lora", "lora:0", "lora:-1", "lora:01", "lora: 4", "last", "last:1.5", "LORA:4", "", "lora:4\n"]
)
def test_other_words_are_refused(setting):
    from beit.finetune.config import FinetuneConfig
    from beit.finetune.segmentation.config import SegmentationConfig

    for kind in (FinetuneConfig, SegmentationConfig):
        with pytest.raises(InputError, match=r'adapt .* must be "all", "last:N"'):
            kind(adapt=setting)


def test_two_settings_for_what_stays_exclude_each_other():
    require_one_limit("all", 3)
    require_one_limit("last:3", 0)
    with pytest.raises(InputError, match=r'freeze_blocks \(3\) and adapt \("last:2"\)'):
        require_one_limit("last:2", 3)


@pytest.mark.parametrize(("setting", "message"), [("last:4", "at most 3 blocks"), ("lora:25", "at most 24")])
def test_what_the_shape_cannot_follow_is_refused(setting, message):
    with pytest.raises(InputError, match=message) as caught:
        adapted(classifier(), setting)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("build", [masked_model, classifier])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_updates_begin_at_the_base_to_the_bit(build, is_training, dtype):
    base = build().train(is_training)
    model = adapted(copy.deepcopy(base), "lora:4")
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        assert torch.equal(predict(model), predict(base))


@pytest.mark.parametrize("build", [masked_model, classifier])
@pytest.mark.parametrize("rank", [1, 4, 24])
def test_merged_equals_unmerged(build, rank):
    model = with_updates(adapted(build(), f"lora:{rank}"))
    plain = build()
    before = predict(plain)
    plain.load_state_dict(merge_state(model.state_dict()), strict=True)
    assert (predict(model) - before).abs().max() > 1e-3
    torch.testing.assert_close(predict(plain), predict(model), rtol=1e-5, atol=1e-5)


def test_every_matrix_of_a_block_has_an_update_and_the_rest_of_the_encoder_stays():
    model = adapted(masked_model(), "lora:4")
    updates = {f"blocks.{i}.{name}.lora_{part}" for i in range(3) for name in MATRICES for part in "ab"}
    assert trained(model) == updates | {"mask_token", "norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias"}
    predict(model).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_what_is_new_in_an_encoder_is_trained_beside_updates():
    table = "blocks.1.attn.relative_position_bias_table"
    assert table in trained(adapted(classifier(), "lora:4", fresh=[table]))
    assert table not in trained(adapted(classifier(), "lora:4"))


def test_the_last_blocks_and_what_follows_are_trained():
    model = adapted(masked_model(), "last:1")
    after = {"norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias"}
    assert trained(model) == after | {name for name, _ in model.named_parameters() if name.startswith("blocks.2.")}
    assert trained(adapted(masked_model(), "last:0")) == after
    whole = trained(adapted(masked_model(), "last:3"))
    assert {name.partition(".")[0] for name in whole} == {"blocks", "norm", "lm_head"}
    assert "mask_token" in trained(adapted(masked_model(), "last:1", fresh=["mask_token"]))


def test_all_changes_nothing():
    model = masked_model()
    names = trained(model)
    assert trained(adapted(model, "all")) == names == {name for name, _ in model.named_parameters()}


def test_a_block_that_is_not_trained_gets_no_updates():
    model = classifier()
    model.blocks[2].requires_grad_(False)
    assert not any(name.startswith("blocks.2.") for name in trained(adapted(model, "lora:4")))


def test_updates_learn_at_their_layers_rate_and_decay():
    model = adapted(classifier(), "lora:4")
    groups = param_groups(model, weight_decay=0.1, layer_decay=0.5, depth=3)
    found = {parameter: group for group in groups for parameter in group["params"]}
    for i in range(3):
        for part in ("lora_a", "lora_b"):
            group = found[getattr(model.blocks[i].mlp.fc1, part)]
            assert (group["lr_scale"], group["weight_decay"]) == (0.5 ** (3 - i), 0.1)
    assert len(found) == len(trained(model))


def test_a_plain_state_is_merged_to_itself():
    state = masked_model().state_dict()
    merged = merge_state(state)
    assert list(merged) == list(state) and all(merged[name] is state[name] for name in state)


def test_trained_parameters_are_told_apart():
    model = masked_model()
    assert parameters_in_words(model) == "0.0 M parameters"
    updates = 4 * 3 * (24 + 72 + 24 + 24 + 2 * (24 + 96))
    number = updates + 24 + 2 * 24 + 32 * 25
    assert parameters_in_words(adapted(model, "lora:4")) == f"{number / 1e6:.2g} of 0.0 M parameters trained"
