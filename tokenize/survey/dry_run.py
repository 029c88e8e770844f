"""`beit tokenize --dry-run`: what the source holds, and what tokenising it so would take; nothing is written.

Where this disk or memory would not be enough is said as the command itself would say it.
"""

from __future__ import annotations

from dataclasses import replace

from beit.common.errors import InputError
from beit.common.forecast.loading import PHOTO_MEGAPIXELS
from beit.common.forecast.words import in_gb, in_words
from beit.common.pages.numbers import count
from beit.common.processes.cores import ranks_here
from beit.common.storage.paths import is_remote
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.forecast import forecast_of, foretell
from beit.tokenize.plan import StorePlan, plan_store, planned_held_out
from beit.tokenize.setup import check_place
from beit.tokenize.store.documents import open_store_files
from beit.tokenize.survey.document import Survey
from beit.tokenize.survey.listing import keeping_warnings
from beit.tokenize.survey.survey import survey


def rehearse(
    config: TokenizeConfig, source: str, store: str, *, ranks: int = 1, resume: str = "auto"
) -> tuple[Survey, list[tuple[str, str]]]:
    """Look at a source, and plan its store.

    Args:
        config: All settings.
        source: Images, in any form `open_source` knows.
        store: Folder that would be written, or URL.
        ranks: Processes that would be at work.
        resume: As for the command.
    Returns:
        What the source is, with the reasons for which the command would refuse; and labelled lines of what it would do.
    """
    budget = 0.0 if config.strict else config.bad_sample_budget
    any_size = frozenset({"TIFF"} if config.tile else {"TIFF", "JPEG"} if config.short_side else ())
    found, _ = survey(source, config.source, budget=budget, any_size=any_size)
    if not found.kind:
        return found, []
    try:
        with keeping_warnings():  # the table has them
            plan = plan_store(config, source, store)
            if not is_remote(store):  # whether a server lets us write is found out by writing
                with open_store_files(store) as files:
                    check_place(files, resume=resume)
            foretell(plan, config, store, ranks=ranks_here(ranks), speaks=False)
    except InputError as error:
        return replace(found, refusals=(*found.refusals, str(error))), []
    return found, _rows(plan, config, found, store, ranks)


def _rows(plan: StorePlan, config: TokenizeConfig, found: Survey, store: str, ranks: int) -> list[tuple[str, str]]:
    megapixels = PHOTO_MEGAPIXELS if found.looks is None else found.looks.mean_megapixels
    takes = forecast_of(plan, config, ranks=ranks_here(ranks), num_images=found.num_images, megapixels=megapixels)
    about = "" if found.is_counted else "about "
    images = f"packed, {in_gb(takes.image_bytes)}" if takes.image_bytes else "stay where they are"
    time = "a time that nobody knows" if takes.seconds is None else f"about {in_words(takes.seconds)}"
    views = "no views" if not config.views else f"{config.views} views of each at {config.img_size} px"
    what = f"{about}{count(takes.num_images)}"
    if plan.catalogue is not None and plan.catalogue.cuts is not None:
        what = f"{count(len(plan.catalogue.refs), 'image')} cut into {count(takes.num_images, 'sample')}"
    choice = planned_held_out(plan, config)
    return [
        ("images", f"{what}, {count(takes.num_held_out)} of them held out; {images}"),
        *([("held out", choice.warning)] if choice is not None and choice.warning else []),
        ("views", f"{views}, tokenizer {config.tokenizer}" if config.views else views),
        ("shards", count(takes.num_shards)),
        ("disk", f"about {in_gb(takes.total_bytes)} in {store}"),
        ("time", f"{time} ({takes.hardware.flops_source})"),
        *([("memory", f"about {in_gb(takes.memory_bytes)} per rank")] if takes.memory_bytes is not None else []),
    ]
