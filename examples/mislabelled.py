"""Find wrong labels: a tenth of the digits' labels is changed, and several scores look for them.

    python -m examples.mislabelled

An MLP is trained on scikit-learn's 1,437 training digits, three times, with other wrong labels
each time. Every score ranks the training images; what it is worth is how early the wrong ones come.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from examples import gallery
from examples.digits import Example, build_model, load, per_example_loss
from replay import Replay, SelfInfluence, Task
from tracer import TracingSGD, with_ids

Scores = dict[str, NDArray[np.float64]]
Ranks = list[tuple[Scores, NDArray[np.bool_]]]  # of each seed: scores, and which labels are wrong

WRONG = 0.1  # share of labels that are changed
CHECKPOINTS = 10
MEASURES = ("found in first 10 %", "found in first 20 %", "AUROC", "average precision")


def flipped(images: dict[int, Example], seed: int) -> tuple[dict[int, Example], set[int]]:
    """Return images of which a tenth has another digit as label, and the numbers of these."""
    generator = np.random.default_rng(seed)
    wrong = generator.choice(list(images), round(WRONG * len(images)), replace=False).tolist()
    shifts = generator.integers(1, 10, len(wrong)).tolist()
    changed = {
        k: (images[k][0], (images[k][1] + shift) % 10, k)
        for k, shift in zip(wrong, shifts, strict=True)
    }
    return {**images, **changed}, set(wrong)


def train(task: Task, log: Path, *, seed: int, epochs: int) -> None:
    """Train with tracing."""
    torch.manual_seed(seed)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(with_ids(task.train), batch_size=32, shuffle=True)
    with TracingSGD(sgd, model, log, task=task, overwrite=True) as optimizer:
        for epoch in range(epochs):
            optimizer.epoch = epoch
            for ids, batch in loader:
                optimizer.zero_grad()
                task.loss(model, batch).mean().backward()
                optimizer.step(batch_ids=ids)


def squared_norms(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Return each example's squared gradient norm, all parameters together, ``(n,)``."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], pixels: Tensor, digit: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, pixels[None])[0], digit)

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, *batch[:2])
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0)


def scores_of(run: Replay, influence: SelfInfluence) -> Scores:
    """Return every score of the training examples, in their order; large means suspicious."""
    batch, model = default_collate(list(run.task.train.values())), run.task.model().eval()
    points = [int(k) for k in str(influence.attributes["checkpoints"]).split()]
    found = {
        "`self` (every visit)": influence.scores["self"],
        f"`self` by TracInCP, {len(points)} checkpoints": influence.scores["tracincp"],
    }
    found |= of_captum(run, model, batch, points)
    model.load_state_dict(run.state_dict(len(run.log)))
    found["gradient norm at the end"] = squared_norms(model, batch).sqrt().double().numpy()
    found["loss at its visits, mean"] = influence.scores["loss"]
    found["loss at the end"] = run.task.loss(model, batch).detach().double().numpy()
    return found


def of_captum(run: Replay, model: nn.Module, batch: list[Tensor], points: list[int]) -> Scores:
    """Return self-influence as Captum computes it at the same checkpoints, if installed."""
    try:
        from captum.influence import TracInCP, TracInCPFast
    except ImportError:
        click.echo("Captum is not installed; its rows are left out: pip install captum", err=True)
        return {}

    def load_state(model: nn.Module, point: str) -> float:
        model.load_state_dict(run.state_dict(int(point)))
        return run.log.learning_rate(min(int(point), len(run.log) - 1))[0]

    how = {
        "train_dataset": TensorDataset(*batch[:2]),
        "checkpoints": [str(point) for point in points],
        "checkpoints_load_func": load_state,
        "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
        "batch_size": 128,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how Captum hooks the model
        whole = TracInCP(model, sample_wise_grads_per_batch=True, **how)
        last = TracInCPFast(model, final_fc_layer=list(model)[-1], **how)
        return {
            "Captum, `TracInCP`": whole.self_influence().double().numpy(),
            "Captum, `TracInCPFast` (last layer)": last.self_influence().double().numpy(),
        }


def found_in_first(scores: NDArray[np.float64], wrong: NDArray[np.bool_], share: float) -> float:
    """Return the share of the wrong labels among the first examples, by largest score."""
    first = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    return float(wrong[first].sum() / wrong.sum())


def measures(scores: NDArray[np.float64], wrong: NDArray[np.bool_]) -> list[float]:
    """Return what a ranking is worth, one number for each of ``MEASURES``."""
    return [
        found_in_first(scores, wrong, 0.1),
        found_in_first(scores, wrong, 0.2),
        float(roc_auc_score(wrong, scores)),
        float(average_precision_score(wrong, scores)),
    ]


def by_epoch(influence: SelfInfluence, wrong: NDArray[np.bool_]) -> list[list[float]]:
    """Return AUROC of each epoch: of its self-influence, of all so far, of the losses at visits."""
    own, losses = influence.by_period["self"], influence.by_period["loss"]
    tables = own.T, own.cumsum(1).T, losses.T
    return [
        [float(roc_auc_score(wrong, one)) for one in rows] for rows in zip(*tables, strict=True)
    ]


def figure_of(ranks: Ranks, epochs: list[list[float]]) -> Figure:
    """Draw the share found against the share looked at, and AUROC over epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    shares = np.linspace(0, 0.3, 61)
    for n, name in enumerate(ranks[0][0]):
        curves = [[found_in_first(s[name], wrong, x) for x in shares] for s, wrong in ranks]
        style: dict[str, object] = {"ls": ("-", "--", ":")[n % 3], "color": gallery.COLOURS[n]}
        left.plot(100 * shares, 100 * np.mean(curves, 0), label=name.replace("`", ""), **style)
    left.plot([0, 10], [0, 100], lw=0.8, color="0.6", label="best possible")
    left.set(xlabel="training images looked at (%)", ylabel="wrong labels found (%)")
    left.set(xlim=(5, 30), ylim=(40, 101))
    left.set_title(f"mean over {len(ranks)} seeds", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    ticks = np.arange(1, len(epochs) + 1)
    for n, name in enumerate(("self, this epoch", "self, so far", "loss, this epoch")):
        right.plot(ticks, [row[n] for row in epochs], marker=".", label=name)
    right.axhline(0.5, lw=0.8, color="0.6")
    right.set(xlabel="epoch", ylabel="AUROC", xticks=ticks, ylim=(0.45, 1.01))
    right.set_title("seed 0, by epoch; 0.5 is chance", fontsize=10)
    right.legend(frameon=False, fontsize=8, loc="center right")
    return figure


def text_of(ranks: Ranks, epochs: int) -> str:
    """Return the page's part: the table."""
    rows = []
    for name in ranks[0][0]:
        values = zip(*(measures(scores[name], wrong) for scores, wrong in ranks), strict=True)
        rows.append([name, *(gallery.interval(list(one)) for one in values)])
    wrong = ranks[0][1]
    return (
        f"{len(wrong):,} training images, {wrong.sum()} with a wrong label, {epochs} epochs; means "
        f"over {len(ranks)} seeds ± half a 95 % interval by Student's t.\n\n"
        + gallery.table(["score", *MEASURES], rows)
        + "\n![Wrong labels found against images looked at, and AUROC by epoch](mislabelled.png)"
    )


def ranked(
    seed: int, log: Path, epochs: int, images: dict[int, Example]
) -> tuple[Replay, set[int]]:
    """Train on wrong labels, and return the run with the numbers of the wrong ones."""
    changed, wrong = flipped({k: image for k, image in images.items() if k % 5}, seed)
    test = {k: image for k, image in images.items() if k % 5 == 0}
    task = Task(build_model, per_example_loss, changed, test, show=lambda e: f"labelled {e[1]}")
    train(task, log, seed=seed, epochs=epochs)
    return Replay(log, task), wrong


@click.command()
@gallery.places("mislabelled")
@click.option("--epochs", default=10, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--images", "count", type=int, help="Use the first so many digits; default: all.")
def main(out: Path, page: Path | None, epochs: int, seeds: int, count: int | None) -> None:
    """Train on wrong labels, rank, and write the page and its figure."""
    images = dict(list(load().items())[:count])
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    ranks: Ranks = []
    curve: list[list[float]] = []
    for seed in range(seeds):
        run, numbers = ranked(seed, logs / f"mislabelled-{seed}.h5", epochs, images)
        wrong = np.array([k in numbers for k in run.task.train])
        influence = run.self_influence(checkpoints=CHECKPOINTS, by="epoch", progress=False)
        ranks.append((scores_of(run, influence), wrong))
        curve = curve or by_epoch(influence, wrong)
        click.echo(f"seed {seed}: self finds {measures(next(iter(ranks[-1][0].values())), wrong)}")
    figures = {"mislabelled.png": figure_of(ranks, curve)}
    gallery.publish(page or out, "mislabelled", text_of(ranks, epochs), figures)


if __name__ == "__main__":
    main()
