"""Relative position bias: the index, the learned table, and its resize to another grid.

Here: which table row each (query, key) pair reads, the module that owns one table, and the geometric spline that moves
a table to another resolution. Not here: where tables sit in the model (`common/vit/vit.py`), and which tensors of a
file get resized (`common/vit/adapt.py`).

Legend: h, w = patch grid; N = h * w patches; S = 1 + N; H = heads; R = rows of the table; B = batch, K = queries per
image. CLS is position 0 of the sequence.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from beit.common.errors import require

NUM_CLS_ROWS = 3
"""Rows after the patch offsets: CLS to patch, patch to CLS, CLS to CLS."""

TABLE_KEY = "relative_position_bias_table"

_SLOPES = (0.3, 1.6)
"""Of the widest and the narrowest head that `near_first` makes."""


def num_table_rows(grid_size: tuple[int, int]) -> int:
    """Return R: one row per offset between two patches of the grid, and three for pairs with CLS."""
    height, width = grid_size
    return (2 * height - 1) * (2 * width - 1) + NUM_CLS_ROWS


def near_first(grid_size: tuple[int, int], num_heads: int) -> Tensor:
    """Return a table (R, H) that prefers near patches: minus the distance in patches, times a slope for each head.

    Slopes grow by equal factors from head to head. What concerns CLS is 0.
    """
    height, width = grid_size
    y, x = torch.arange(1 - height, height), torch.arange(1 - width, width)
    distances = (y[:, None] ** 2 + x[None, :] ** 2).float().sqrt().flatten()
    widest, narrowest = _SLOPES
    slopes = torch.logspace(math.log10(widest), math.log10(narrowest), num_heads)
    patches = -distances[:, None] * slopes
    return torch.cat([patches, patches.new_zeros(NUM_CLS_ROWS, num_heads)])


def relative_position_index(grid_size: tuple[int, int], device: str | torch.device | None = None) -> Tensor:
    """Build the table row that each (query, key) pair of the sequence over a grid (height, width) reads.

    Returns:
        (1 + N, 1 + N) int32 in [0, R); row = query, column = key, patches row-major after CLS.

    Source: the released BEiT code; patch i to patch j reads (y_i - y_j + h - 1)(2w - 1) + (x_i - x_j + w - 1).
    """
    height, width = grid_size
    y = torch.arange(height, dtype=torch.int32, device=device).repeat_interleave(width)  # (N,)
    x = torch.arange(width, dtype=torch.int32, device=device).repeat(height)  # (N,)
    row_offset = y[:, None] - y[None, :] + height - 1  # (N, N), query minus key, shifted to start at 0
    column_offset = x[:, None] - x[None, :] + width - 1
    rows = num_table_rows(grid_size)
    index = row_offset.new_empty(1 + height * width, 1 + height * width)
    index[1:, 1:] = row_offset * (2 * width - 1) + column_offset
    index[0, :] = rows - 3  # CLS asks a patch
    index[:, 0] = rows - 2  # a patch asks CLS
    index[0, 0] = rows - 1
    return index


class RelativePositionBias(nn.Module):
    """The learned table that all blocks share."""

    relative_position_bias_table: nn.Parameter

    def __init__(self, grid_size: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_table_rows(grid_size), num_heads))

    def extra_repr(self) -> str:
        """Show grid and heads."""
        return f"grid_size={self.grid_size}, num_heads={self.relative_position_bias_table.shape[1]}"

    def forward(self, index: Tensor, grid_size: tuple[int, int] | None = None) -> Tensor:
        """Return the additive attention bias (1, H, 1 + N, 1 + N) in the table's dtype; see `gather_bias`.

        The table is resized where `index` is of another grid than its own.
        """
        table = resize_table(self.relative_position_bias_table, self.grid_size, grid_size or self.grid_size)
        return gather_bias(table, index, grid_size)


def gather_bias(table: Tensor, index: Tensor, grid_size: tuple[int, int] | None = None) -> Tensor:
    """Spread a table (R, H) over all (query, key) pairs, by the index of `relative_position_index`.

    Where no gradient is wanted, the grid (height, width) that the index is of makes it several times faster on a CPU.

    Returns:
        (1, H, 1 + N, 1 + N), the table's dtype, last dimension contiguous; add it to the scaled attention logits.
    """
    # As an embedding look-up the backward is one dense scatter; advanced indexing would sort all (1 + N)^2 indices.
    if not torch.is_grad_enabled() and grid_size is not None and not table.is_cuda:
        return _spread(table, grid_size)
    bias = nn.functional.embedding(index, table).permute(2, 0, 1).contiguous()[None]  # (1, H, 1+N, 1+N)
    if not table.is_cuda:
        return bias
    # The memory-efficient kernel wants every stride to be a multiple of 16; padding here, once, saves its own padding
    # in every block. The view handed out has the true length.
    length = index.shape[1]
    return nn.functional.pad(bias, (0, -length % 16))[..., :length]


def _spread(table: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Do what `gather_bias` does by copying windows: the patches that a patch asks lie as one in its table's grid."""
    height, width = grid_size
    heads, length = table.shape[1], 1 + height * width
    bias = table.new_empty(1, heads, length, length)
    to_patch, to_cls, own = table[-NUM_CLS_ROWS:]
    bias[0, :, 0, 1:], bias[0, :, 1:, 0], bias[0, :, 0, 0] = to_patch[:, None], to_cls[:, None], own
    # Turned round, offsets of keys ascend: (H, 2h-1, 2w-1), of which a query sees a window of h by w.
    offsets = table[:-NUM_CLS_ROWS].T.reshape(heads, 2 * height - 1, 2 * width - 1).flip(1, 2).contiguous()
    windows = offsets.unfold(2, width, 1).flip(2)  # (H, 2h-1, queries' x, keys' x)
    for y in range(height):
        first = height - 1 - y
        rows = windows[:, first : first + height].transpose(1, 2)  # (H, queries' x, keys' y, keys' x)
        torch.unflatten(bias[0, :, 1 + y * width : 1 + (y + 1) * width, 1:], -1, grid_size).copy_(rows)
    return bias


def bias_rows(bias: Tensor, positions: Tensor) -> Tensor:
    """Take the rows (B, H, K, S) of some queries, (B, K) int64 in [0, S), out of the bias (1, H, S, S)."""
    _, heads, length, _ = bias.shape
    # As an embedding look-up, again, the backward is one dense scatter.
    by_query = bias[0].transpose(0, 1).reshape(length, heads * length)
    rows = nn.functional.embedding(positions, by_query)  # (B, K, H S)
    return rows.view(*positions.shape, heads, length).transpose(1, 2)


def resize_table(table: Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int]) -> Tensor:
    """Move a learned table to another patch grid.

    Offsets near zero matter most and are learned best, so the source points are spread geometrically, dense in the
    middle, such that they cover the target range; a bicubic spline then reads the target offsets.

    Takes (R_source, H) float and both grids, patches (height, width).

    Returns:
        (R_target, H), dtype of the input; the three CLS rows are copied. The input itself where the grids are equal.
    Source: the released BEiT fine-tuning code. Differs: each axis has its own spacing, so rectangles work; the spline,
        there SciPy's interp2d (removed), is evaluated here as an equivalent matrix in float64.
    """
    rows = num_table_rows(source_grid)
    require(
        table.shape[0] == rows,
        f"relative position table has {table.shape[0]} rows, a {source_grid[0]}x{source_grid[1]} grid needs {rows}; "
        "the encoder's config.json does not describe its weights",
    )
    if source_grid == target_grid:
        return table
    height, width = (2 * side - 1 for side in source_grid)
    rows_matrix = spline_matrix(height, 2 * target_grid[0] - 1).to(table.device)  # (d_h, s_h)
    columns_matrix = spline_matrix(width, 2 * target_grid[1] - 1).to(table.device)  # (d_w, s_w)
    offsets = table[:-NUM_CLS_ROWS].to(torch.float64).reshape(height, width, -1)
    resized = torch.einsum("ys,swh,xw->yxh", rows_matrix, offsets, columns_matrix)
    return torch.cat([resized.flatten(0, 1).to(table.dtype), table[-NUM_CLS_ROWS:]])


def geometric_spacing(source_len: int, target_len: int) -> float:
    """Find the ratio q whose geometric steps stretch the source offsets of one axis over the target's, both odd.

    Returns:
        q in [1.01, 1.5]: the last midpoint of a bisection for 1 + q + ... + q^(n-1) = target_len // 2 with n =
        source_len // 2. Shrinking ends at the lower limit, as in the released code.
    """
    steps, reach = source_len // 2, target_len // 2
    low = ratio = 1.01  # bracket and final width as in the published checkpoints' loader
    high = 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**steps) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    return ratio


@lru_cache(maxsize=32)
def spline_matrix(source_len: int, target_len: int) -> Tensor:
    """Build the matrix that resamples one axis of a table; the numbers of offsets along it are odd.

    Returns:
        (target_len, source_len) float64: the not-a-knot cubic spline through the geometrically spaced source points,
        read at the integer target offsets, which are clamped to the source range. Identity where the lengths agree.
    """
    if source_len == target_len:
        return torch.eye(source_len, dtype=torch.float64)
    if source_len == 1:
        return torch.ones(target_len, 1, dtype=torch.float64)
    ratio = geometric_spacing(source_len, target_len)
    steps = torch.tensor([ratio**k for k in range(source_len // 2)], dtype=torch.float64)
    half = steps.cumsum(0)  # 1, 1 + q, 1 + q + q^2, ...
    knots = torch.cat([-half.flip(0), torch.zeros(1, dtype=torch.float64), half])
    reach = target_len // 2
    points = torch.arange(-reach, reach + 1, dtype=torch.float64).clamp(knots[0], knots[-1])
    if source_len == 3:  # too few knots for a cubic: the parabola through them
        powers = torch.arange(3, dtype=torch.float64)
        parabola: Tensor = (points[:, None] ** powers) @ torch.linalg.inv(knots[:, None] ** powers)
        return parabola
    return _not_a_knot(knots, points)


def _not_a_knot(knots: Tensor, points: Tensor) -> Tensor:
    # The spline is linear in its values, so solve once for the second derivatives of all unit vectors: curvature @ z.
    count = len(knots)
    gaps = knots.diff()
    system = torch.zeros(count, count, dtype=torch.float64)
    slopes = torch.zeros(count, count, dtype=torch.float64)
    for i in range(1, count - 1):
        left, right = gaps[i - 1], gaps[i]
        system[i, i - 1], system[i, i], system[i, i + 1] = left, 2 * (left + right), right
        slopes[i, i - 1], slopes[i, i], slopes[i, i + 1] = 6 / left, -6 / left - 6 / right, 6 / right
    # The third derivative is continuous at the second and at the last but one knot.
    system[0, 0], system[0, 1], system[0, 2] = gaps[1], -(gaps[0] + gaps[1]), gaps[0]
    system[-1, -3], system[-1, -2], system[-1, -1] = gaps[-1], -(gaps[-2] + gaps[-1]), gaps[-2]
    curvature = torch.linalg.solve(system, slopes)  # (s, s)
    piece = torch.searchsorted(knots, points, right=True).sub(1).clamp(0, count - 2)  # (d,)
    width = gaps[piece][:, None]
    to_right, to_left = knots[piece + 1][:, None] - points[:, None], points[:, None] - knots[piece][:, None]
    unit = torch.eye(count, dtype=torch.float64)
    linear: Tensor = (to_right * unit[piece] + to_left * unit[piece + 1]) / width
    bend_left = (to_right**3 / width - width * to_right) * curvature[piece]
    bend_right = (to_left**3 / width - width * to_left) * curvature[piece + 1]
    matrix: Tensor = linear + (bend_left + bend_right) / 6
    return matrix
