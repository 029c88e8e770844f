"""An exponential moving average of the weights under training, which often does better than the weights themselves.

Each rank averages what its optimizer updates: whole parameters at ZeRO 0, its own flat partitions at ZeRO 1 to 3, where
the average is one more optimizer state. So no step needs communication, and `portable_state.py` saves and restores
averages as it does moments. Full averages are put together to be measured (`averaged_weights`) and to be saved. What
batch norms have seen of activations is averaged likewise: it belongs to the weights that made them.

Source: the warm-up of the decay is TensorFlow's `ExponentialMovingAverage` (num_updates). Differs: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from beit.common.runs.checkpoint import AVERAGE
from beit.common.training.engine import Engine, gathered, hp_tensor, running_statistics


class WeightAverage:
    """The running average of an engine's weights; every rank has one.

    `decay` is the share that is kept per update, once it is warm; without, nothing is averaged and costs anything.
    """

    def __init__(self, engine: Engine, decay: float | None) -> None:
        self._engine = engine
        self._decay = 0.0 if decay is None else decay
        self.is_on = decay is not None

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights after an optimizer step; a skipped step moves nothing.

        Whether it was skipped is known on the device only, so everything is computed there: nothing waits.
        """
        if not self.is_on:
            return
        done, applied = self._engine.average_updates, 1.0 - self._engine.skipped.to(self._engine.world.device)
        # While there is little to average, a long memory would hold on to the random weights of the start.
        share = 1.0 - torch.clamp((1.0 + done) / (10.0 + done), max=self._decay)
        done += applied
        averages, weights = list(self._engine.averages.values()), list(self._engine.averages)
        averages += self._engine.statistics.values()
        weights += self._running().values()
        shares = {device: (share * applied).to(device) for device in {average.device for average in averages}}
        torch._foreach_lerp_(averages, weights, [shares[average.device] for average in averages])

    @torch.no_grad()
    def restart_rows(self, parameter: nn.Parameter, rows: torch.Tensor) -> None:
        """Begin anew, at their present values, with rows that were overwritten rather than trained; at ZeRO 0 only.

        Args:
            parameter: Of the engine's model, (M, ...).
            rows: Bool (M,), True where overwritten.
        """
        if self.is_on:
            average = self._engine.averages[parameter]
            average.copy_(torch.where(rows.view(-1, *[1] * (parameter.ndim - 1)), parameter, average))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the model compute with the averages inside the block, and with its own weights, to the bit, after it.

        Collective at ZeRO 1 to 3.
        """
        if not self.is_on:
            yield
            return
        own = [parameter.detach().clone() for parameter in self._trained()] if self._engine.zero_stage == 0 else None
        statistics = {name: value.clone() for name, value in self._running().items()}
        self._show(None, self._engine.statistics, kind=AVERAGE)
        try:
            yield
        finally:
            self._show(own, statistics, kind=None)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._engine.model.parameters() if parameter.requires_grad]

    def _running(self) -> dict[str, torch.Tensor]:
        return running_statistics(self._engine.model)

    @torch.no_grad()
    def _show(
        self, values: list[torch.Tensor] | None, statistics: Mapping[str, torch.Tensor], *, kind: str | None
    ) -> None:
        """Put `values`, or else what the engine holds of a kind, into the module that forward passes read."""
        for name, statistic in self._running().items():
            statistic.copy_(statistics[name])
        for number, parameter in enumerate(self._trained()):
            if self._engine.zero_stage == 0:
                parameter.copy_(self._engine.averages[parameter] if values is None else values[number])
                continue
            value = hp_tensor(parameter, kind)
            with gathered(self._engine, parameter, modify=True):
                parameter.copy_(value)
