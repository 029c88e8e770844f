"""MAE's masks, decoder and loss are those of the paper, and of transformers on the same tensors."""

import pytest
import torch
from torch import nn

from beit.benchmarks.mae import (
    Mae,
    MaeConfig,
    bias_pairs,
    encode_kept,
    masked_error,
    patchify,
    shuffle_by,
    sine_positions,
    unshuffle,
)
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path": 0.0}
OURS = {"use_mask_token": False, "final_norm": True, "mlp_ratio": 2.0}


def test_so_many_patches_are_kept_and_each_finds_its_place():
    noise = torch.rand(5, 16, generator=torch.Generator().manual_seed(0))
    kept, restore, masked = shuffle_by(noise, mask_ratio=0.75)
    assert kept.shape == (5, 4) and masked.sum(1).tolist() == [12] * 5
    assert not masked.gather(1, kept).any()
    patches = torch.arange(16).expand(5, -1)[..., None]
    token = torch.full((1, 1, 1), -1)
    placed = unshuffle(
        torch.cat([torch.zeros(5, 1, 1, dtype=torch.long), patches.gather(1, kept[..., None])], 1), restore, token
    )
    assert torch.equal(placed[:, 1:, 0], torch.where(masked, -1, torch.arange(16)))


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_one_patch_at_least_is_kept_and_one_masked(ratio):
    assert shuffle_by(torch.rand(1, 4), mask_ratio=ratio).bool_masked_pos.sum() == (1 if ratio < 0.5 else 3)


def test_what_is_not_kept_is_not_seen():
    torch.manual_seed(0)
    encoder = VisionTransformer(ViTConfig(**SHAPE, **OURS))
    nn.init.normal_(encoder.rel_pos_bias.relative_position_bias_table)
    images = torch.randn(2, 3, 16, 16)
    everything = torch.arange(16).expand(2, -1)
    assert torch.allclose(encode_kept(encoder, images, everything), encoder.forward_features(images), atol=1e-5)
    kept = torch.tensor([[3, 9], [0, 15]])
    seen = encode_kept(encoder, images, kept)
    other = images.clone()
    other[:, :, 4:8, 0:4] = 7.0  # patch 4
    assert torch.equal(encode_kept(encoder, other, kept), seen)


def test_the_bias_of_a_pair_is_the_one_of_its_positions():
    bias, positions = torch.rand(1, 3, 5, 5), torch.tensor([[0, 4], [0, 2]])
    pairs = bias_pairs(bias, positions)
    assert torch.equal(pairs[1, 2], bias[0, 2][[0, 2]][:, [0, 2]]) and pairs.shape == (2, 3, 2, 2)


def test_the_loss_falls_on_a_batch_that_is_learned_by_heart():
    torch.manual_seed(0)
    mae = Mae(
        VisionTransformer(ViTConfig(**SHAPE, **OURS)), MaeConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2)
    )
    optimizer, images, losses = torch.optim.AdamW(mae.parameters(), 3e-3), torch.rand(1, 4, 3, 16, 16), []
    for _ in range(60):
        loss = mae.loss([images], progress=0.0, generator=torch.Generator().manual_seed(1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.reference
@pytest.mark.parametrize("normalize", [True, False])
def test_transformers_paints_the_same_patches_at_the_same_loss(normalize):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            **{"image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"intermediate_size": 48, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2},
            **{"decoder_num_attention_heads": 2, "decoder_intermediate_size": 64, "mask_ratio": 0.75},
            **{"norm_pix_loss": normalize, "layer_norm_eps": 1e-6},
        )
    ).eval()
    theirs.decoder.initialize_weights(16)  # transformers 5.23 leaves fixed positions at zero, the encoder's, too
    nn.init.normal_(theirs.vit.embeddings.position_embeddings)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    shape = ViTConfig(**SHAPE, **OURS, pos_bias="none", use_abs_pos_emb=True, init_values=0.0, layer_norm_eps=1e-6)
    config = MaeConfig(decoder_dim=16, decoder_depth=2, decoder_heads=2, normalize_patches=normalize)
    ours = Mae(VisionTransformer(shape), config).eval()
    copy_weights(theirs, ours)
    images, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 16)
    expected = theirs(pixel_values=images, noise=noise)
    kept, restore, masked = shuffle_by(noise, mask_ratio=0.75)
    assert torch.equal(restore, expected.ids_restore) and torch.equal(masked.float(), expected.mask)
    assert torch.equal(patchify(images, 4), theirs.patchify(images))
    painted = ours.decoder(encode_kept(ours.encoder, images, kept), restore)
    assert torch.allclose(painted, expected.logits, atol=1e-4)
    loss = masked_error(painted, patchify(images, 4), masked, normalize)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert torch.allclose(sine_positions((4, 4), 16), theirs.decoder.decoder_pos_embed, atol=1e-6)


def copy_weights(theirs, ours):
    """Give our encoder and decoder the weights of transformers' model."""
    embeddings, encoder, decoder = theirs.vit.embeddings, ours.encoder, ours.decoder
    pairs = [(encoder.patch_embed.proj, embeddings.patch_embeddings.projection), (encoder.norm, theirs.vit.layernorm)]
    pairs += [(decoder.embed, theirs.decoder.decoder_embed), (decoder.norm, theirs.decoder.decoder_norm)]
    pairs += [(decoder.paint, theirs.decoder.decoder_pred)]
    layers = list(
        zip([*encoder.blocks, *decoder.blocks], [*theirs.vit.layers, *theirs.decoder.decoder_layers], strict=True)
    )
    for block, layer in layers:
        pairs += [(block.norm1, layer.layernorm_before), (block.norm2, layer.layernorm_after)]
        pairs += [(block.attn.proj, layer.attention.o_proj), (block.mlp.fc1, layer.mlp.fc1)]
        pairs += [(block.mlp.fc2, layer.mlp.fc2)]
    with torch.no_grad():
        for our, their in pairs:
            our.load_state_dict(their.state_dict())
        for block, layer in layers:
            query, key, value = (getattr(layer.attention, f"{name}_proj") for name in "qkv")
            key.bias.zero_()  # ours has none; it would cancel in the softmax
            block.attn.qkv.weight.copy_(torch.cat([query.weight, key.weight, value.weight]))
            block.attn.q_bias.copy_(query.bias)
            block.attn.v_bias.copy_(value.bias)
        encoder.cls_token.copy_(embeddings.cls_token)
        encoder.pos_embed.copy_(embeddings.position_embeddings)
        decoder.mask_token.copy_(theirs.decoder.mask_token)
