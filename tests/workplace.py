"""A folder as a reader of the documents has it: a token store, an encoder, two fine-tuned models, pictures."""

from pathlib import Path

import torch
from PIL import Image

from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.tests.encoders import save_classifier, save_encoder, save_segmenter
from beit.tests.support import write_images, write_store


def write_workplace(folder: Path) -> Path:
    """Write a small one.

    In it are `store/`, `runs/pretrain/encoder`, `runs/flowers/model`, `runs/streets/model`, `photo.jpg`,
    `other.png` and `street.jpg`.
    """
    write_store(folder, images=20)
    shape = ViTConfig(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = VisionTransformer(shape).state_dict()
    save_encoder(folder / "runs/pretrain/encoder", state, architecture=shape, mean=[0.5] * 3, std=[0.5] * 3)
    save_classifier(folder / "runs/flowers/model", class_names=("rose", "tulip"))
    save_segmenter(folder / "runs/streets/model", class_names=("road", "sky"))
    Image.new("RGB", (64, 48), (90, 90, 120)).save(folder / "street.jpg")
    write_images(folder, 2, size=40)
    Image.open(folder / "0000.png").save(folder / "photo.jpg")
    (folder / "0001.png").rename(folder / "other.png")
    return folder
