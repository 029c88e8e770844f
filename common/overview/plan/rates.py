"""What was measured on this machine, in the place of what a forecast assumes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from beit.common.forecast.hardware import Hardware
from beit.common.forecast.training import TrainingForecast, measured_here


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Of this machine; on a processor of all its cores, else of one GPU."""

    flops: float
    """Multiplications and additions per second in forward and backward passes."""
    update_seconds: float
    """Of the optimizer's update."""
    reading_seconds: float
    """Of one core, for a training view."""
    views_per_second: float | None
    """That are tokenised; None where there is a store already."""
    image_bytes: float | None
    """That an image takes of the store; None where that is known without, or nobody knows the images."""
    import_seconds: float
    """Of what a command imports."""
    took_seconds: float
    """To measure it."""

    @property
    def source(self) -> str:
        """Where numbers come from that rest on these."""
        return f"measured here in {self.took_seconds:.0f} s"

    def on(self, hardware: Hardware) -> Hardware:
        """Return hardware that computes as was measured."""
        return replace(hardware, flops=self.flops / self._sharing(hardware), flops_source=self.source)

    def views_on(self, hardware: Hardware) -> float | None:
        """Return the views that are tokenised per second on all machines."""
        if self.views_per_second is None:
            return None
        return self.views_per_second * hardware.num_devices / self._sharing(hardware)

    def of(self, forecast: TrainingForecast, *, num_workers: int) -> TrainingForecast:
        """Return the forecast of a training at the speed that was measured."""
        hardware, model = forecast.hardware, forecast.model
        groups = hardware.num_devices // self._sharing(hardware)  # of devices that were measured as one
        computing = model.flops_per_image / self.flops
        if hardware.device == "cpu":  # where data workers take their time from the same cores
            image = computing + self.reading_seconds / hardware.cores
        else:
            workers = max(1.0, min(num_workers, hardware.cores_per_device))
            image = max(computing, self.reading_seconds / workers)
        step = image * forecast.global_batch_size / groups + self.update_seconds
        return measured_here(forecast, forecast.global_batch_size / step, self.source)

    @staticmethod
    def _sharing(hardware: Hardware) -> int:
        """Return how many ranks share what was measured as one: those of a machine without GPUs."""
        return hardware.devices_per_machine if hardware.device == "cpu" else 1
