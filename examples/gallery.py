"""The pages of docs/gallery: tables, figures, and the part of a page that an example writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats

BEGIN, END = "<!-- results: written by the example -->", "<!-- end of results -->"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito

mpl.rcParams.update(
    {
        "axes.prop_cycle": mpl.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "svg.hashsalt": "tracin-replay",
    }
)


def places(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that say where an example writes."""
    folder = click.Path(path_type=Path, file_okay=False)

    def added(command: Callable[..., None]) -> Callable[..., None]:
        out, page = Path("demo") / name, "For the page and its figures; default: --out."
        command = click.option("--page", type=folder, help=page)(command)
        return click.option("--out", type=folder, default=out, help="For logs.")(command)

    return added


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; numbers with three digits."""
    lines = [head, ["---"] * len(head), *([written(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(cell: object) -> str:
    """Return a number with three digits, anything else as it is."""
    return f"{cell:.3g}".replace("-", "−") if isinstance(cell, float) else str(cell)


def interval(values: list[float]) -> str:
    """Return the mean over seeds, and half the width of its 95 % interval by Student's t."""
    mean = f"{np.mean(values):.3f}".replace("-", "−")
    if len(values) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean} ± {half:.3f}"


def publish(out: Path, name: str, text: str, figures: Mapping[str, Figure]) -> None:
    """Write ``NAME.md`` and its figures into a folder.

    Of a page that is there, only what stands between ``BEGIN`` and ``END`` is replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    for figure_name, figure in figures.items():
        figure.savefig(out / figure_name, dpi=110, metadata={"Software": None})
        plt.close(figure)
    page = out / f"{name}.md"
    before, after = f"# {name}\n\n{BEGIN}\n", f"{END}\n"
    if page.exists():
        before, begin, rest = page.read_text().partition(f"{BEGIN}\n")
        _, end, after = rest.partition(f"{END}\n")
        if not begin or not end:
            raise click.UsageError(f"{page} has no part for results, {BEGIN} to {END}; move it.")
        before, after = before + begin, end + after
    page.write_text(f"{before}\n{text.strip()}\n\n{after}")
    click.echo(f"wrote {', '.join(map(str, [page, *(out / f for f in figures)]))}")
