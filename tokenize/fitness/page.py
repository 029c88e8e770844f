"""The page of a fitness report: one HTML file that needs nothing but itself (`beit.common.pages.html_page`)."""

from __future__ import annotations

from collections.abc import Sequence

from beit import __version__
from beit.common.pages.html_page import attribute, data_uri, document, text
from beit.tokenize.fitness.figures import LINE_COLOURS, MAP_COLOURS, map_pixels, map_range, usage_curve
from beit.tokenize.fitness.report import FitnessReport
from beit.tokenize.fitness.rows import Row, shown_rows
from beit.tokenize.fitness.sheet import SheetRow
from beit.tokenize.fitness.verdicts import LEVEL_NAMES, Level, Verdict

_NAMES_SHOWN = 100


def page(report: FitnessReport) -> str:
    """Return the whole page."""
    is_single = len(report.fitness) == 1
    title = f"Tokenizer report: {report.labels[0]}" if is_single else "Tokenizers compared"
    parts = [
        f'<p class="eyebrow">beit {text(__version__)}</p><h1>{text(title)}</h1>',
        f'<p class="lead">{text(report.describe())}</p>',
        _verdict_section(report) if is_single else _verdict_sections(report),
        _sheet(report),
        _usage(report),
        _maps(report),
        _numbers(report),
        _unusable(report),
        _footer(report),
    ]
    return document(title, parts)


def _pill(level: Level) -> str:
    return f'<span class="pill {level}">{LEVEL_NAMES[level]}</span>'


def _verdict_item(verdict: Verdict) -> str:
    advice = f'<p class="advice">{text(_sentence(verdict.advice))}</p>' if verdict.advice else ""
    return (
        f"<li>{_pill(verdict.level)}<div><b>{text(verdict.title)}.</b> {text(_sentence(verdict.text))}"
        f"{advice}</div></li>"
    )


def _rules(report: FitnessReport) -> str:
    """List the rules behind all verdicts, each once."""
    verdicts = [report.images_verdict, *(verdict for verdicts in report.verdicts for verdict in verdicts)]
    rules = {verdict.title: verdict.rule for verdict in verdicts}
    items = "".join(f"<p><b>{text(title)}</b>: {text(rule)}.</p>" for title, rule in rules.items())
    return f"<details><summary>The rules behind these verdicts</summary>{items}</details>"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _verdict_section(report: FitnessReport) -> str:
    items = "".join(map(_verdict_item, [report.images_verdict, *report.verdicts[0]]))
    return f'<h2>Verdicts</h2><ul class="verdicts">{items}</ul>{_rules(report)}'


def _verdict_sections(report: FitnessReport) -> str:
    """For several tokenizers: a table of levels, then whatever is not good, one list per tokenizer."""
    titles = list(dict.fromkeys(verdict.title for verdicts in report.verdicts for verdict in verdicts))
    by_title = [{verdict.title: verdict for verdict in verdicts} for verdicts in report.verdicts]
    head = "".join(f"<th>{text(label)}</th>" for label in report.labels)
    rows = "".join(
        f"<tr><th>{text(title)}</th>"
        + "".join(f"<td>{_pill(found[title].level)}</td>" if title in found else "<td>-</td>" for found in by_title)
        + "</tr>"
        for title in titles
    )
    parts = [
        f'<h2>Verdicts</h2><div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    ]
    if report.images_verdict.level != "good":
        parts.append(f'<ul class="verdicts">{_verdict_item(report.images_verdict)}</ul>')
    for label, verdicts in zip(report.labels, report.verdicts, strict=True):
        items = "".join(_verdict_item(verdict) for verdict in verdicts if verdict.level != "good")
        if items:
            parts.append(f'<h3>{text(label)}</h3><ul class="verdicts">{items}</ul>')
    parts.append(_rules(report))
    return "".join(parts)


def _numbers(report: FitnessReport) -> str:
    is_single = len(report.fitness) == 1
    columns = len(report.fitness) + 1 + is_single
    labels = [] if is_single else report.labels
    head = "".join(f'<th class="number">{text(label)}</th>' for label in labels)
    body, section = [], ""
    for row in shown_rows(report.fitness):
        if row.section != section:
            section = row.section
            body.append(f'<tr><th colspan="{columns}">{text(section)}</th></tr>')
        body.append(_number_row(row, report, is_single=is_single))
    thead = f"<thead><tr><th></th>{head}</tr></thead>" if labels else ""
    meanings = "" if is_single else _meanings(report)
    return (
        f'<h2>Numbers</h2><div class="scroll"><table class="{"single" if is_single else "many"}">{thead}'
        f"<tbody>{''.join(body)}</tbody></table></div>{meanings}"
    )


def _number_row(row: Row, report: FitnessReport, *, is_single: bool) -> str:
    best = row.best(report.fitness)
    cells = []
    for index, fitness in enumerate(report.fitness):
        value = row.value(fitness)
        meter = ""
        if row.section == "Stability" and value is not None:
            meter = f'<span class="meter"><i style="width:{100 * value:.1f}%"></i></span>'
        kind = "number best" if index in best else "number"
        cells.append(f'<td class="{kind}"><span class="value">{text(row.show(fitness))}</span>{meter}</td>')
    under = f'<span class="meaning">{text(row.meaning)}</span>' if is_single else ""
    beside = f'<td class="meaning">{text(row.meaning)}</td>' if is_single else ""
    return f"<tr><th>{text(row.label)}{under}</th>{''.join(cells)}{beside}</tr>"


def _meanings(report: FitnessReport) -> str:
    items = "".join(f"<p><b>{text(row.label)}</b>: {text(row.meaning)}</p>" for row in shown_rows(report.fitness))
    return f"<details><summary>What the rows mean; a check marks the best value</summary>{items}</details>"


def _usage(report: FitnessReport) -> str:
    usages = [fitness.tokens.words for fitness in report.fitness]
    curve = usage_curve(usages, [fitness.tokenizer.vocab_size for fitness in report.fitness], report.labels)
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 24 10" aria-hidden="true"><line class="line{index % LINE_COLOURS}" '
        f'x1="0" x2="24" y1="5" y2="5"/></svg>{text(label)}</span>'
        for index, label in enumerate(report.labels)
    )
    caption = (
        "How often each word occurs, in units of its fair share (1 = as often as if all words were equally frequent). "
        "A flat line is an evenly used vocabulary; where it falls to the floor, words are hardly used or not at all."
    )
    if len(usages) == 1:
        keys = ""
        caption += " Dashed: what chance makes of words that really are equally frequent, in as few tokens."
    legend = f"<div>{keys}</div>" if keys else ""
    return f"<h2>Use of the words</h2><figure>{curve}{legend}<figcaption>{text(caption)}</figcaption></figure>"


def _maps(report: FitnessReport) -> str:
    grids = [fitness.tokens.positions for fitness in report.fitness]
    low, high = map_range([grid.bits for grid in grids])
    maps = "".join(
        f'<figure><img class="map" src="{data_uri(map_pixels(grid.bits, low, high))}" alt="Entropy of the tokens by '
        f'place, {min(map(min, grid.bits)):.1f} to {max(map(max, grid.bits)):.1f} bits">'
        f"<figcaption>{text(label)}: border {grid.border_bits:.2f}, inside {grid.inner_bits:.2f} bits"
        "</figcaption></figure>"
        for label, grid in zip(report.labels, grids, strict=True)
    )
    colours = ", ".join("rgb({}, {}, {})".format(*colour) for colour in MAP_COLOURS)
    scale = (
        f'<div class="scale"><span>{low:.1f}</span><i style="background:linear-gradient(90deg, {colours})"></i>'
        f"<span>{high:.1f} bits</span></div>"
    )
    caption = (
        "Entropy of the words at each place of the grid. An even picture is a good one: views are drawn anywhere in an "
        f"image, so a rim or a stripe is the tokenizer's doing, not the images'. {grids[0].num_views} views can show "
        f"{grids[0].ceiling_bits:.1f} bits at most, so compare places, not bits with the table."
    )
    return f'<h2>Entropy by place</h2><div class="maps">{maps}</div>{scale}<p class="soft">{text(caption)}</p>'


def _sheet(report: FitnessReport) -> str:
    if not report.sheet:
        return (
            "<h2>Reconstructions</h2>"
            '<p class="soft">No tokenizer here has a decoder, so there are no pictures to show.</p>'
        )
    columns = len(report.sheet[0].pictures)
    width = max(16, 6 * (columns + 1))  # rem; three strips beside each other on a wide page, where they fit
    parts = ["<h2>Reconstructions</h2>"]
    groups = list(dict.fromkeys(row.group for row in report.sheet))
    for group in groups:
        strips = "".join(_strip(row, report) for row in report.sheet if row.group == group)
        parts.append(
            f'<h3>{text(group)}</h3><div class="strips" '
            f'style="grid-template-columns:repeat(auto-fill, minmax(min(100%, {width}rem), 1fr))">{strips}</div>'
        )
    ranked = "PSNR" if columns == 1 else "mean PSNR"
    parts.append(
        f'<p class="soft">Each strip: the view, then what {"the tokens" if columns == 1 else "each tokenizer"} kept '
        f"of it. Chosen by {ranked} among all views measured, not by eye.</p>"
    )
    return "".join(parts)


def _strip(row: SheetRow, report: FitnessReport) -> str:
    cells = [f'<div><img src="{data_uri(row.original)}" alt="view"><div class="under">view</div></div>']
    for picture in row.pictures:
        label = report.labels[picture.tokenizer]
        under = f"{picture.psnr:.1f} dB" if len(row.pictures) == 1 else f"{label}, {picture.psnr:.1f} dB"
        cells.append(
            f'<div><img src="{data_uri(picture.pixels)}" alt="reconstruction by {attribute(label)}">'
            f'<div class="under" title="{attribute(under)}">{text(under)}</div></div>'
        )
    name = f'<div class="name" title="{attribute(row.name)}">{text(row.name)}</div>'
    return f'<div class="strip" style="grid-template-columns:repeat({len(cells)}, 1fr)">{"".join(cells)}{name}</div>'


def _unusable(report: FitnessReport) -> str:
    if not report.bad_samples:
        return ""
    shown = report.bad_samples[:_NAMES_SHOWN]
    items = "".join(
        f"<tr><td>{text(bad.sample_id)}</td><td>{text(bad.reason)}</td><td>{text(bad.detail)}</td></tr>"
        for bad in shown
    )
    more = len(report.bad_samples) - len(shown)
    rest = f"<p>and {more:,} more</p>" if more else ""
    return (
        f"<h2>Images passed over</h2><details><summary>{text(report.describe_bad())}</summary>"
        f'<div class="scroll"><table><tbody>{items}</tbody></table></div>{rest}</details>'
    )


def _footer(report: FitnessReport) -> str:
    speed = report.fitness[0].speed
    prints: Sequence[str] = [
        f"{text(label)}: <code>{text(fitness.tokenizer.fingerprint)}</code>"
        for label, fitness in zip(report.labels, report.fitness, strict=True)
    ]
    return (
        f"<footer><p>Speed: {text(speed.device)}, {speed.threads} torch thread{'s' if speed.threads != 1 else ''}, "
        f"{speed.micro_batch_size} views per batch, median of repeats after a warm-up; decoding files and cropping not "
        f"included. All other numbers: float32; stability on {report.fitness[0].stability.num_views} views.</p>"
        f"<p>Fingerprint of {'; '.join(prints)}</p></footer>"
    )
