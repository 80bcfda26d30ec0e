"""The page: one self-contained file that shows a result."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from replay.methods.names import reference
from replay.report.accounts import accounts_table, misses
from replay.report.comparisons import agreement_table
from replay.report.facts import facts, of_run, proof
from replay.report.figures import drawings
from replay.report.mislabelled import examined, mislabelled_table
from replay.report.rankings import MOST, named, rankings
from replay.report.study import Study
from replay.report.tables import Table, signed
from replay.report.views import Views
from replay.results.output import check_free, inputs_of, moved_when_whole
from replay.results.summary import said_of_tolerance
from replay.results.verdict import verdict
from replay.showing import legible
from tracer.errors import InputError

_OURS = b'<meta name="generator" content="tracin-replay">'  # as a page begins
_FILES = ("page.html", "page.css", "page.js", "parts.html")


def page(study: Study) -> str:
    """Return the page as HTML: styles, figures, pictures and script in one text.

    Raises:
        TaskError: ``Task.show`` fails.
    """
    sources = {name: (files(__package__) / name).read_text("utf-8") for name in _FILES}
    script = sources["page.js"]
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filled = environment.get_template("page.html").render(
        **_content(study),
        css=Markup(sources["page.css"]),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return legible(filled)


def write(study: Study, path: Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Write the page beside its place and move it there when whole.

    Args:
        study: What it shows.
        path: Its place.
        overwrite: Whether it may replace an earlier page.
        inputs: Files that it may never replace.

    Raises:
        OutputExistsError: The file exists and ``overwrite`` is off.
        InputError: It is no page, or cannot be written.
        TaskError: ``Task.show`` fails.
    """
    kept = [*inputs_of(study.influence.attributes), *inputs]
    require_free(path, overwrite=overwrite, inputs=kept)
    text = page(study)
    with moved_when_whole(path, overwrite=overwrite) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def require_free(path: Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raise unless a page can be written: it replaces an earlier page and nothing else.

    Args:
        path: Its place.
        overwrite: Whether it may replace one.
        inputs: Files that it may never replace.

    Raises:
        OutputExistsError: The file exists and ``overwrite`` is off.
        InputError: It is no page, or cannot be written.
    """
    check_free(path, None, overwrite=overwrite, inputs=inputs)
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            begins = file.read(1024)
        if _OURS not in begins:
            raise InputError(
                f"the page would replace {path}, which is no page of tracin-replay.\n"
                "1. Choose another path (--out).\n"
                "2. Or remove that file yourself."
            )


def _content(study: Study) -> dict[str, Any]:
    influence = study.influence
    views = Views(study, influence.test_ids, [*named(study), *examined(study)])
    missed = misses(influence)
    proved, proof_says = proof(influence)
    return {
        "title": f"Influence: {influence.attributes.get('log', 'a result')}",
        "count": len(influence.test_ids),
        "facts": facts(influence),
        "proved": proved,
        "proof": proof_says,
        "missing": of_run(study),
        "verdict": verdict(influence),
        "missed": missed,
        "off": len({miss.test_id for miss in missed}),
        "signed": signed,
        "figures": drawings(study),
        "rankings": rankings(study, views),
        "ranked_by": reference(influence.scores),
        "more": max(0, len(influence.test_ids) - MOST),
        **_tables(study, views),
    }


def _tables(study: Study, views: Views) -> dict[str, Table | str | None]:
    """Return the tables of the page; None where there is nothing to show."""
    influence = study.influence
    found: dict[str, Table | str | None] = {
        "accounts": accounts_table(influence, views) if influence.terms else None,
        "beyond": said_of_tolerance(influence.attributes, influence.beyond_tolerance),
        "agreement": None,
        "truth": None,
        "truth_is": "",
        "mislabelled": mislabelled_table(study, views),
        "baseline": "loss" if _has_baseline(study) else None,
    }
    if len(influence.scores) > 1:
        pairs = influence.agreement(progress=False)
        found["agreement"] = agreement_table(pairs, influence.scores, "agreement")
    if study.truth is not None:
        truth = influence.agreement(truth=study.truth, progress=False)
        found["truth"] = agreement_table(truth, {}, "agreement with the runs")
        found["truth_is"] = truth.protocol
    return found


def _has_baseline(study: Study) -> bool:
    return study.self_influence is not None and "loss" in study.self_influence.scores
