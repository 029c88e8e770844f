import dataclasses

from beit.common.config import config_from_dict
from beit.common.forecast.hardware import named, this_machine
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.vit.config import ViTConfig
from beit.tokenize.clustering.config import ClusteringConfig
from beit.tokenize.clustering.forecast import ClusteringForecast, forecast_clustering


def forecast(vit: ViTConfig | None = None, **clustering: int) -> ClusteringForecast:
    config = config_from_dict(ClusteringConfig, {"clustering": clustering})
    words = KMeansConfig(vocab_size=1024, patch_size=8 if vit is None else vit.patch_size, vit=vit)
    side = 112 if vit is None else vit.img_size
    return forecast_clustering(config, words, view_size=side, num_chosen=64, hardware=this_machine(num_devices=1))


def test_more_batches_take_longer_and_larger_ones_more_memory() -> None:
    usual = forecast()
    assert usual.num_batches == 110 and usual.seconds is not None and usual.memory_bytes is not None
    longer, larger = forecast(steps=300), forecast(global_batch_size=4096)
    assert longer.seconds is not None and longer.seconds > 2 * usual.seconds
    assert longer.memory_bytes == usual.memory_bytes
    assert larger.memory_bytes is not None
    assert larger.memory_bytes - usual.memory_bytes == 3 * 4 * (4096 - 512) * 64 * (8 * 8 * 3)


def test_a_busy_machine_takes_longer_and_vectors_cost_more_than_their_products() -> None:
    here = dataclasses.replace(this_machine(num_devices=1), cores=2, flops=1e15, spare=1.0)
    words, config = KMeansConfig(vocab_size=64, patch_size=8), config_from_dict(ClusteringConfig, {})
    quiet, busy = (
        forecast_clustering(config, words, view_size=112, num_chosen=64, hardware=place).seconds
        for place in (here, dataclasses.replace(here, spare=0.25))
    )
    assert quiet is not None and busy is not None
    assert quiet > 110 * 512 * 64 * 10e-6  # though products take no time
    assert abs(busy / quiet - 4) < 0.1


def test_a_teacher_is_asked_for_every_view() -> None:
    shape = ViTConfig(img_size=112, patch_size=8, embed_dim=192, depth=6, num_heads=3)
    taught, alone = forecast(shape), forecast()
    assert taught.seconds is not None and alone.seconds is not None and taught.seconds > alone.seconds
    assert taught.disk_bytes > alone.disk_bytes


def test_the_line_tells_of_what_is_left() -> None:
    half = dataclasses.replace(forecast(), seconds=100.0, memory_bytes=5e8, disk_bytes=3_000_000)
    line = half.line(after=55, free_disk=10**9)
    assert line.startswith("expected: about 50 s (assumed: ")
    assert line.endswith(") and 500 MB of memory for 55 batches; 3 MB of disk, 1 GB are free there")
    on_gpu = forecast_clustering(
        config_from_dict(ClusteringConfig, {}),
        KMeansConfig(vocab_size=1024, patch_size=8),
        view_size=112,
        num_chosen=64,
        hardware=named("A100"),
    )
    assert on_gpu.memory_bytes is None and "of memory" not in on_gpu.line()
