"""A made-up fitness of a tokenizer, good in every respect, and reports of it; tests change what they are about."""

from dataclasses import replace

import numpy as np

from beit.common.reading.bad_samples import BadSampleReport
from beit.tokenize.fitness.agreement import Agreement
from beit.tokenize.fitness.classes import ClassScore
from beit.tokenize.fitness.measure import Fitness, Reconstruction, Speed, TokenizerFacts
from beit.tokenize.fitness.report import FitnessReport, ReportSettings
from beit.tokenize.fitness.sheet import Picture, SheetRow
from beit.tokenize.fitness.stability import ShiftStability, Stability
from beit.tokenize.fitness.tokens import ContextGain, NeighbourCopies, PositionEntropy, TokenStatistics, word_usage
from beit.tokenize.fitness.verdicts import judge, judge_images


def good_fitness(name: str = "good", **changes: object) -> Fitness:
    fitness = Fitness(
        tokenizer=TokenizerFacts(
            name=name, fingerprint="0" * 64, vocab_size=64, downsampling=8, can_decode=True, paints_averages=False
        ),
        num_views=128,
        view_size=32,
        grid_size=4,
        tokens=TokenStatistics(
            words=word_usage(np.full(64, 32)),
            positions=PositionEntropy(
                num_views=128, ceiling_bits=6.0, bits=[[5.0] * 4] * 4, border_bits=5.0, inner_bits=5.0
            ),
            neighbours=NeighbourCopies(left_share=0.1, up_share=0.1, chance=1 / 64),
            context=ContextGain(
                num_fit_tokens=5000, num_test_tokens=5000, unigram_bits=6.0, context_bits=5.0, gain_bits=1.0
            ),
        ),
        reconstruction=Reconstruction(
            psnr=23.0, block_mean_psnr=20.0, ssim=0.7, block_mean_ssim=0.5, share_above_block_mean=0.9
        ),
        agreement=Agreement(
            num_views=64,
            shift_px=2,
            chance=1 / 64,
            equal_shares={"mirror": 0.6, "colours": 0.5, "all": 0.4},
            above_chance={"mirror": 0.594, "colours": 0.492, "all": 0.391},
            kept_bits=2.0,
        ),
        num_labelled=128,
        classes=ClassScore(
            num_images=128,
            num_classes=4,
            commonest_share=0.25,
            accuracy=0.75,
            standard_error=0.04,
            colours_accuracy=0.5,
            difference_error=0.05,
        ),
        stability=Stability(
            num_views=64,
            shifts=[
                ShiftStability(shift_px=shift, is_whole_tokens=shift == 8, equal_share=share)
                for shift, share in ((1, 0.6), (2, 0.4), (4, 0.2), (8, 0.9))
            ],
            jpeg_equal_share=0.9,
            dtype_equal_shares={"bfloat16": 0.98},
        ),
        speed=Speed(
            device="CPU (TEST)",
            threads=1,
            micro_batch_size=32,
            encode_views_per_second={"float32": 100.0, "bfloat16": 200.0},
            decode_views_per_second=50.0,
        ),
    )
    return replace(fitness, **changes)  # type: ignore[arg-type]


def example_report(*names: str, source: str = "photos", bad: tuple[BadSampleReport, ...] = ()) -> FitnessReport:
    fitness = [good_fitness(name) for name in names]
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pictures = [Picture(tokenizer=index, pixels=pixels, psnr=20.0 + index) for index in range(len(names))]
    return FitnessReport(
        source=source,
        num_in_source=1000,
        num_drawn=128 + len(bad),
        bad_samples=list(bad),
        settings=ReportSettings(num_images=128 + len(bad), view_size=32, seed=0),
        labels=list(names),
        fitness=fitness,
        verdicts=[judge(one, num_in_source=1000) for one in fitness],
        images_verdict=judge_images(len(bad), 128 + len(bad)),
        sheet=[SheetRow(group="Median", name=f"{source}/1.jpg", original=pixels, pictures=pictures)],
    )
