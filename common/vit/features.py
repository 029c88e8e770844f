"""How much frozen features say about labels: every block's features in one pass, weighted k-NN and linear classifiers.

    train = extract_features(encoder, train_batches, device=device)
    test = extract_features(encoder, test_batches, device=device)
    scores = probe_blocks(train, test, num_classes=10)
    scores[best_block(scores)].linear_acc

Everything here is a deterministic function of tensors: no files, no data set, no settings. The encoder stays as it is:
put it into eval mode, and call inside autocast where that is wanted.

Legend: B = batch, n = images, S = 1 + N sequence with CLS first, D = embed_dim, F = feature width (D, or 2 D with CLS),
L = blocks, C = classes. Blocks are counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.common.vit.config import Normalization
from beit.common.vit.transform import normalize_images
from beit.common.vit.vit import VisionTransformer

FeaturePooling = Literal["mean", "cls", "cls_mean"]

KNN_TEMPERATURE = 0.07
"""Of the neighbours' weights exp(cosine / temperature); the value of DINO's evaluation."""
KNN_NEIGHBOURS = 20
"""Neighbours that vote; DINO's best on ImageNet-1k."""
LINEAR_L2 = 1e-3
"""Weight penalty on standardised features. From 1e-4 to 1e-2 accuracies differ by about a point; arbitrary within."""
_CHUNK = 1024
"""Queries compared at a time: 1024 x 50 000 similarities are 200 MB."""
_STD_FLOOR = 1e-6


class Features(NamedTuple):
    """Frozen features of labelled images, on the CPU."""

    blocks: Tensor
    """(L, n, F) float32: one vector per block and image, of the features after the block."""
    labels: Tensor
    """(n,) int64."""


class BlockScore(NamedTuple):
    """How well the features of one block classify held-back images; shares in [0, 1]."""

    block: int
    """Which, from 0."""
    knn_acc: float
    """Of the weighted k-NN."""
    linear_acc: float
    """Of the linear classifier."""


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A linear classifier on raw features; standardisation is already in its weights."""

    weight: Tensor
    """(C, F) float32."""
    bias: Tensor
    """(C,) float32."""

    def logits(self, features: Tensor) -> Tensor:
        """Map features (n, F) to logits (n, C) float32."""
        with _full_precision(features.device):
            return nn.functional.linear(features.float(), self.weight, self.bias)


def pool_features(hidden: Tensor, pooling: FeaturePooling = "mean") -> Tensor:
    """Reduce features, a sequence per image, to one vector per image.

    Args:
        hidden: (B, 1 + N, D) of any float dtype, CLS first, then the N patches: what an encoder returns.
        pooling: "mean" averages the patches; "cls" takes CLS; "cls_mean" puts both side by side, CLS first, as the
            released linear evaluation does.

    Returns:
        (B, F) float32 on the same device, F = D, or 2 D with "cls_mean". Nothing is normalised: divide by the length
        before comparing by distance.

    Example:
        >>> hidden = torch.zeros(2, 1 + 16, 24)
        >>> beit.pool_features(hidden, "mean").shape, beit.pool_features(hidden, "cls_mean").shape
        (torch.Size([2, 24]), torch.Size([2, 48]))
    """
    if pooling not in ("mean", "cls", "cls_mean"):
        raise ValueError(f"pooling ({pooling!r}) must be mean, cls or cls_mean")
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    mean = hidden[:, 1:].mean(1)
    return mean if pooling == "mean" else torch.cat([hidden[:, 0], mean], dim=1)


def extract_features(
    model: VisionTransformer,
    batches: Iterable[Mapping[str, Any]],
    *,
    device: torch.device,
    normalization: Normalization | None = None,
    pooling: FeaturePooling = "mean",
    forward: Callable[[Tensor], Any] | None = None,
    num_images: int | None = None,
) -> Features:
    """Compute the features of every block in one pass over the images.

    Args:
        model: In eval mode, on `device`.
        batches: Dicts with images (B, 3, img_size, img_size) uint8 and labels (B,) int64. Keeps 4 L F bytes each.
        device: Where to compute.
        normalization: Of the pixels; left out, the model's own.
        pooling: See `pool_features`.
        forward: What runs all blocks on normalised images; left out, `model.forward_features`. Weights that are
            partitioned (ZeRO 3) are only gathered through the module's own call.
        num_images: That are to come at most, if that is known: room is then made once.

    Returns:
        The features; of no image (n = 0) where there is no batch.
    Raises:
        ValueError: no normalization is known.
    """
    normalization = normalization or model.normalization
    if normalization is None:
        raise ValueError("the model has no normalization of its own; give one")
    kept: _Kept | None = None
    with torch.no_grad():
        for batch in batches:
            images = normalize_images(batch["images"].to(device), normalization.mean, normalization.std)
            with _recorded(model, pooling) as outputs:
                (forward or model.forward_features)(images)
            pooled = torch.stack(outputs).cpu()  # (L, B, F)
            kept = kept or _Kept(pooled, batch["labels"], expected=num_images)
            kept.add(pooled, batch["labels"])
    if kept is None:
        width = model.config.embed_dim * (2 if pooling == "cls_mean" else 1)
        return Features(torch.zeros(len(model.blocks), 0, width), torch.zeros(0, dtype=torch.int64))
    return kept.features()


class _Kept:
    """The features of all batches so far, in one piece that grows seldom.

    Batches kept one by one lie between what the next ones need for a moment, and memory with such gaps fits nothing any
    more: a process that kept 12,000 images of 4 kB each grew to 1.6 GB.
    """

    def __init__(self, first: Tensor, labels: Tensor, *, expected: int | None) -> None:
        """Make room for as many images as are expected, if that is known, of features like the first (L, B, F)."""
        room = expected or first.shape[1]
        self._blocks = first.new_empty(first.shape[0], room, first.shape[2])
        self._labels = labels.new_empty(room, device="cpu")
        self._count = 0

    def add(self, pooled: Tensor, labels: Tensor) -> None:
        """Take the features (L, B, F) and labels (B,) of a batch."""
        count = self._count + len(labels)
        if count > len(self._labels):
            self._give_room(max(count, 2 * len(self._labels)))
        self._blocks[:, self._count : count] = pooled
        self._labels[self._count : count] = labels
        self._count = count

    def features(self) -> Features:
        """Return what was taken; copied only where there is room left."""
        if self._count < len(self._labels):
            return Features(self._blocks[:, : self._count].clone(), self._labels[: self._count].clone())
        return Features(self._blocks, self._labels)

    def _give_room(self, count: int) -> None:
        blocks, labels = self._blocks, self._labels
        self._blocks = blocks.new_empty(blocks.shape[0], count, blocks.shape[2])
        self._labels = labels.new_empty(count)
        self._blocks[:, : self._count] = blocks[:, : self._count]
        self._labels[: self._count] = labels[: self._count]


@contextmanager
def _recorded(model: VisionTransformer, pooling: FeaturePooling) -> Iterator[list[Tensor]]:
    """Collect the pooled output of every block, in the order they run; the sequences themselves are not kept."""
    outputs: list[Tensor] = []

    def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs.append(pool_features(model.finish(output), pooling))

    handles = [block.register_forward_hook(record) for block in model.blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def knn_scores(
    train: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    ks: Sequence[int] = (KNN_NEIGHBOURS,),
    temperature: float = KNN_TEMPERATURE,
) -> Tensor:
    """Let the k nearest training images vote for each query, weighted by exp(cosine similarity / temperature).

    Args:
        train: Features (n, F).
        train_labels: (n,) int64 in [0, C).
        queries: Features (Q, F), on the same device. Needs Q n floats at once; see `knn_predict`.
        num_classes: C.
        ks: Numbers of neighbours; each is cut to n.
        temperature: Smaller listens to the nearest ones more.

    Returns:
        Sums of weights (len(ks), Q, C) float32.
    Source: Z. Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, §3.4.
        Differs: each query's weights are divided by the largest, which changes no decision and cannot overflow.
    """
    with _full_precision(queries.device):
        similarity = nn.functional.normalize(queries.float(), dim=1) @ nn.functional.normalize(train.float(), dim=1).T
    found = similarity.topk(min(max(ks), len(train)), dim=1)  # (Q, k), nearest first
    weights = ((found.values - found.values[:, :1]) / temperature).exp()
    labels = train_labels[found.indices]
    scores = torch.zeros(len(ks), len(queries), num_classes, device=queries.device)
    for row, k in zip(scores, ks, strict=True):
        row.scatter_add_(1, labels[:, :k], weights[:, :k])
    return scores


def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    ks: Sequence[int] = (KNN_NEIGHBOURS,),
    temperature: float = KNN_TEMPERATURE,
) -> Tensor:
    """Classify any number of queries by `knn_scores`, a chunk at a time; returns class ids (len(ks), Q) int64."""
    classify = partial(knn_scores, train, train_labels, num_classes=num_classes, ks=ks, temperature=temperature)
    return torch.cat([classify(chunk).argmax(-1) for chunk in torch.split(queries, _CHUNK)], dim=1)


def fit_linear(features: Tensor, labels: Tensor, *, num_classes: int, l2: float = LINEAR_L2) -> LinearProbe:
    """Fit a multinomial logistic regression by L-BFGS; the same input gives the same classifier.

    Minimises mean cross-entropy + l2 / 2 x ||W||^2, where W acts on features standardised per channel (mean 0, standard
    deviation 1 over the training images; a constant channel becomes 0). Biases are free. The problem is convex, so
    there is no seed and no learning rate to choose. Features are (n, F), labels (n,) int64 in [0, C), or (n, C) floats:
    how much of each class there is, where that may be several: rows that sum to less count less.
    """
    # Also inside an evaluation, where gradients are off.
    with torch.inference_mode(False), torch.enable_grad(), _full_precision(features.device):
        return _fit_linear(features.detach().float(), labels.clone(), num_classes, l2)


def _fit_linear(features: Tensor, labels: Tensor, num_classes: int, l2: float) -> LinearProbe:
    mean, std = features.mean(0), features.std(0, correction=0)
    scale = torch.where(std > _STD_FLOOR, 1 / std.clamp(min=_STD_FLOOR), 0.0)
    inputs = (features - mean) * scale
    weight = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-5, history_size=10, line_search_fn="strong_wolfe"
    )

    def cost() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(nn.functional.linear(inputs, weight, bias), labels)
        total = loss + 0.5 * l2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(cost)  # type: ignore[no-untyped-call]
    folded = weight.detach() * scale
    return LinearProbe(folded, bias.detach() - folded @ mean)


def probe_blocks(train: Features, test: Features, *, num_classes: int) -> list[BlockScore]:
    """Measure how k-NN and a linear classifier (`fit_linear`), both given `train`, do on every block of `test`."""
    scores = []
    for block, (own, other) in enumerate(zip(train.blocks, test.blocks, strict=True)):
        voted = knn_predict(own, train.labels, other, num_classes=num_classes)[0]
        classified = fit_linear(own, train.labels, num_classes=num_classes).logits(other).argmax(1)
        scores.append(BlockScore(block, _share(voted == test.labels), _share(classified == test.labels)))
    return scores


def best_block(scores: Sequence[BlockScore]) -> int:
    """Return the block with the best linear accuracy; the deeper one of equals."""
    return max(scores, key=lambda score: (score.linear_acc, score.block)).block


def _full_precision(device: torch.device) -> torch.autocast:
    """Return what keeps a measurement in float32 inside an evaluation, whose autocast is as training wants it."""
    return torch.autocast(device.type, enabled=False)


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
