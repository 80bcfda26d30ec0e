"""Draw docs/comparison.png from the result of ``make demo``.

python docs/make_comparison.py demo/run.influence.h5 [comparison.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

from replay import Influence

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def main(result: Path, target: Path) -> None:
    influence = Influence.load(result)
    agreement = influence.agreement()
    slope = agreement.get(("tracin", "tracincp"), "slope").median
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.7), layout="constrained")
    scatter(axes[0], influence, "ideal")
    axes[0].axline((0, 0), slope=1, lw=0.8, color="0.5")
    scatter(axes[1], influence, "tracincp")
    drops(axes[2], influence)
    explain(
        axes[0],
        "One dot: one training example, one test image.\nOn the line, both divide the steps alike.",
    )
    explain(
        axes[1], f"Ten checkpoints find a similar order,\non a scale {slope:.0f} times as large."
    )
    explain(
        axes[2],
        "What all examples add up to: ideal meets the\nmeasured drop, first order does not.",
    )
    figure.savefig(target, dpi=110)
    print(f"wrote {target}")


def scatter(axes: Axes, influence: Influence, method: str) -> None:
    exact, other = (influence.scores[name].ravel() for name in ("tracin", method))
    axes.plot(exact, other, ".", ms=2, alpha=0.3, color="C0")
    pearson = influence.agreement().get(("tracin", method), "pearson").median
    axes.set(xlabel="tracin", ylabel=method)
    axes.set_title(f"{method} against tracin: Pearson {pearson:.4f}", fontsize=11)


def drops(axes: Axes, influence: Influence) -> None:
    terms = influence.terms
    axes.plot(terms["ideal"]["measured"].mean(1).cumsum(), label="measured", lw=4, color="0.8")
    for method in terms:
        axes.plot(terms[method]["data"].mean(1).cumsum(), label=method, lw=1)
    axes.set(xlabel="step", ylabel="drop of the test loss so far, mean")
    axes.set_title("Completeness: sums against the measured drop", fontsize=11)
    axes.legend(frameon=False)


def explain(axes: Axes, text: str) -> None:
    axes.text(0.5, -0.2, text, transform=axes.transAxes, ha="center", va="top", fontsize=9)


if __name__ == "__main__":
    place = Path(__file__).with_name("comparison.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else place)
