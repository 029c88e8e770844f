import re
from dataclasses import replace

import numpy as np
import pytest

from beit.tests.fitness_examples import good_fitness
from beit.tokenize.fitness.measure import Fitness
from beit.tokenize.fitness.tokens import word_usage
from beit.tokenize.fitness.verdicts import RULES, Verdict, judge, judge_images


def verdict(fitness: Fitness, key: str) -> Verdict:
    return {found.key: found for found in judge(fitness, num_in_source=1000)}[key]


def with_tokens(**changes: object) -> Fitness:
    return good_fitness(tokens=replace(good_fitness().tokens, **changes))


def with_stability(**changes: object) -> Fitness:
    return good_fitness(stability=replace(good_fitness().stability, **changes))


def test_a_good_tokenizer_gets_good_verdicts_without_advice() -> None:
    verdicts = judge(good_fitness(), num_in_source=1000)
    assert {found.level for found in verdicts} == {"good"}
    assert not any(found.advice for found in verdicts)
    assert all(found.rule and found.text for found in verdicts)


def test_every_rule_is_applied_once() -> None:
    keys = [found.key for found in judge(good_fitness(), num_in_source=1000)]
    assert sorted(keys) == sorted([*RULES, "context", "classes"])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_levels_change_at_the_thresholds(rule) -> None:
    step = 1e-6 if rule.good > rule.bad else -1e-6
    assert rule.level(rule.good) == "good" and rule.level(rule.good - step) == "look"
    assert rule.level(rule.bad) == "look" and rule.level(rule.bad - step) == "bad"
    assert rule.origin and ("least" in rule.as_text()) == (rule.good > rule.bad)


def test_unused_words_are_counted_and_explained() -> None:
    found = verdict(with_tokens(words=word_usage(np.array([64] * 32 + [0] * 32))), "usage")
    assert found.level == "bad"
    assert "50.0 % of the vocabulary (32 of 64 words) never occurs in 2,048 tokens" in found.text
    assert "vocab_size" in found.advice


def test_few_tokens_are_no_proof_of_unused_words() -> None:
    found = verdict(with_tokens(words=word_usage(np.array([1] * 8 + [5] * 24 + [0] * 32))), "usage")
    assert found.level == "look" and "more images would show more words" in found.text
    assert "--images 256 or more" in found.advice


def test_few_tokens_are_proof_enough_of_collapse() -> None:
    found = verdict(with_tokens(words=word_usage(np.array([20] * 4 + [0] * 60))), "usage")
    assert found.level == "bad" and "a new word is 0.0 %" in found.text


def test_one_dominating_word_is_bad() -> None:
    found = verdict(with_tokens(words=word_usage(np.array([10_000] + [1] * 63))), "balance")
    assert found.level == "bad" and "the commonest word makes up 99.37 %" in found.text


def test_few_tokens_are_no_proof_of_unbalanced_words() -> None:
    found = verdict(with_tokens(words=word_usage(np.array([1] * 12 + [0] * 52))), "balance")
    assert found.level == "look" and "12 tokens cannot show many more" in found.text
    assert "--images 256 or more" in found.advice
    found = verdict(with_tokens(words=word_usage(np.array([9] + [1] * 3 + [0] * 60))), "balance")
    assert found.level == "bad"


@pytest.mark.parametrize(
    ("gain", "tokens", "level", "word"),
    [
        (0.01, 9000, "look", "noise"),
        (0.01, 100, "look", "more images"),
        (-0.1, 9000, "look", "0.00 of"),
        (1.0, 100, "good", ""),
        (3.0, 9000, "look", "larger tokens"),
        (5.0, 9000, "bad", "larger tokens"),
    ],
)
def test_context_may_tell_too_little_or_too_much(gain: float, tokens: int, level: str, word: str) -> None:
    context = replace(good_fitness().tokens.context, gain_bits=gain, num_fit_tokens=tokens)
    found = verdict(with_tokens(context=context), "context")
    assert found.level == level and word in found.text + found.advice


@pytest.mark.parametrize(("border", "level"), [(5.4, "good"), (4.0, "look"), (3.0, "bad"), (7.0, "bad")])
def test_border_may_differ_either_way(border: float, level: str) -> None:
    positions = replace(good_fitness().tokens.positions, border_bits=border)
    assert verdict(with_tokens(positions=positions), "border").level == level


def test_reconstruction_below_the_mean_colours_is_bad() -> None:
    worse = replace(good_fitness().reconstruction, psnr=19.0)
    found = verdict(good_fitness(reconstruction=worse), "reconstruction")
    assert found.level == "bad" and "1.0 dB worse than the mean colour of each square" in found.text


def test_averages_are_information_and_no_verdict() -> None:
    averages = replace(good_fitness().tokenizer, paints_averages=True)
    worse = replace(good_fitness().reconstruction, psnr=19.0)
    assert "reconstruction" not in [
        found.key for found in judge(good_fitness(tokenizer=averages, reconstruction=worse), num_in_source=1000)
    ]


@pytest.mark.parametrize(("share", "level"), [(0.3, "good"), (0.1, "look"), (0.0, "bad")])
def test_words_that_hang_on_what_does_not_matter_are_pointed_out(share: float, level: str) -> None:
    agreement = replace(good_fitness().agreement, above_chance={"all": share}, equal_shares={"all": 0.5})
    found = verdict(good_fitness(agreement=agreement), "agreement")
    assert found.level == level and "where chance gives 1.6 %" in found.text and "2.00 of a token's" in found.text


@pytest.mark.parametrize(
    ("accuracy", "num_images", "level", "advice"),
    [
        (0.61, 128, "good", ""),
        (0.59, 128, "look", "--images 256"),
        (0.30, 2000, "bad", "prefer a tokenizer"),
        (0.30, 999, "look", "--images 256"),
        (0.50, 2000, "look", "--teacher"),
    ],
)
def test_words_must_say_more_than_guessing_and_colours(accuracy, num_images, level, advice) -> None:
    score = replace(good_fitness().classes, accuracy=accuracy, num_images=num_images)
    found = verdict(good_fitness(classes=score), "classes")
    assert found.level == level and advice in found.advice
    assert "standard error 4.0 %" in found.text and "the commonest of 4 classes for 25.0 %" in found.text


def test_images_without_classes_get_no_verdict_on_them_and_too_few_are_named() -> None:
    assert "classes" not in [
        found.key for found in judge(good_fitness(classes=None, num_labelled=0), num_in_source=1000)
    ]
    found = verdict(good_fitness(classes=None, num_labelled=20), "classes")
    assert found.level == "look" and "too few of the 20 labelled images" in found.text and "--images" in found.advice


def test_a_tokenizer_without_decoder_gets_no_verdict_on_pixels() -> None:
    assert "reconstruction" not in [found.key for found in judge(good_fitness(reconstruction=None), num_in_source=1000)]


def test_the_worst_number_format_decides() -> None:
    found = verdict(with_stability(dtype_equal_shares={"bfloat16": 0.85, "float16": 0.999}), "precision")
    assert found.level == "bad" and "not in bfloat16" in found.advice


@pytest.mark.parametrize(("bad", "level"), [(0, "good"), (1, "look"), (20, "bad")])
def test_unreadable_images_are_judged_by_what_tokenize_would_do(bad: int, level: str) -> None:
    found = judge_images(bad, 100)
    assert found.level == level
    assert ("more than 0.10 %" in found.advice) == bool(bad)


@pytest.mark.parametrize(
    ("num_in_source", "advice"),
    [
        (1000, r"\(--images 256 or more\)"),
        (200, r"\(--images 200, all of SOURCE\)"),
        (128, "judging: all 128 of SOURCE are, so name another one"),
    ],
)
def test_no_more_images_are_asked_for_than_there_are(num_in_source: int, advice: str) -> None:
    fitness = good_fitness(classes=None, num_labelled=20)
    assert fitness.num_views == 128
    found = {verdict.key: verdict for verdict in judge(fitness, num_in_source=num_in_source)}
    assert re.search(advice, found["classes"].advice), found["classes"].advice
