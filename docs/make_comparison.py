"""Draw docs/comparison.png from the result of ``make demo``.

python docs/make_comparison.py demo/run.influence.h5
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

from replay import Influence

mpl.use("agg")
from matplotlib import pyplot as plt


def main(result: Path) -> None:
    influence = Influence.load(result)
    exact = influence.scores["tracin"].ravel()
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for axis, method in zip(axes[:2], ("ideal", "tracincp"), strict=True):
        axis.plot(exact, influence.scores[method].ravel(), ".", ms=2, alpha=0.3, color="C0")
        row = influence.agreement().get(("tracin", method), "pearson")
        axis.set(xlabel="tracin", ylabel=method, title=f"Pearson {row.median:.4f} (median)")
        if method == "ideal":
            axis.axline((0, 0), slope=1, lw=0.8, color="0.5")
    terms = influence.terms
    measured = terms["ideal"]["measured"].mean(1).cumsum()
    axes[2].plot(measured, label="measured", lw=3, color="0.7")
    for method in terms:
        axes[2].plot(terms[method]["data"].mean(1).cumsum(), label=f"{method}: data", lw=1)
    axes[2].set(xlabel="step", ylabel="cumulative drop of the test loss", title="Completeness")
    axes[2].legend()
    target = Path(__file__).with_name("comparison.png")
    figure.savefig(target, dpi=110)
    print(f"wrote {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
