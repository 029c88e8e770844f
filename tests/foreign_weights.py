"""State dicts with random weights under the names that released vision transformers use."""

import torch

DIM, DEPTH, HEADS, PATCH, SIDE = 48, 2, 4, 8, 4


def timm_vit(*, head=0, prefix="", seed=0, dim=DIM, channels=3):
    """Return what DINO, MAE, DeiT and timm call a ViT: absolute positions, one bias for queries, keys and values."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + SIDE * SIDE, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, channels, PATCH, PATCH), "patch_embed.proj.bias": (dim,)}
    for i in range(DEPTH):
        block = {"norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,)}
        block |= {"attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,)}
        block |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
        block |= {"mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,)}
        block |= {"mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    if head:
        shapes |= {"head.weight": (head, dim), "head.bias": (head,)}
    return {prefix + name: tensor for name, tensor in random_tensors(shapes, seed).items()}


def dino_training(**options):
    """Return what a checkpoint of DINO's training holds."""
    head = {"head.mlp.0.weight": (8, DIM), "head.mlp.0.bias": (8,), "head.last_layer.weight_v": (5, 8)}
    teacher = timm_vit(prefix="backbone.", **options) | random_tensors(head, 1)
    student = {f"module.{name}": tensor + 1 for name, tensor in teacher.items()}
    return {"student": student, "teacher": teacher, "epoch": 3}


def mae_training(**options):
    """Return the weights of MAE with its decoder."""
    decoder = {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 1 + SIDE * SIDE, 16)}
    decoder |= {"decoder_embed.weight": (16, DIM), "decoder_embed.bias": (16,)}
    decoder |= {"decoder_blocks.0.attn.qkv.weight": (48, 16), "decoder_norm.weight": (16,)}
    decoder |= {"decoder_pred.weight": (3 * PATCH * PATCH, 16), "decoder_pred.bias": (3 * PATCH * PATCH,)}
    return timm_vit(**options) | random_tensors(decoder, 2)


def random_tensors(shapes, seed):
    """Return normal values of every shape; gains are around 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.1 + (1.0 if "norm" in name and "weight" in name else 0.0)
        for name, shape in shapes.items()
    }
