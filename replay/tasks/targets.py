"""What a model's scores are compared with: classes, several labels of one example, and numbers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tracer.errors import TaskError

_OWN = "Or write a Task with a loss of your own."


def cross_entropies(scores: Tensor, classes: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each example, ``(b,)`` or as many as classes have dimensions.

    Args:
        scores: ``(b, classes, ...)``.
        classes: Whole numbers, ``(b, ...)``, or probabilities of the shape of the scores.
        label_smoothing: Share of a class's label that all classes have alike.

    Raises:
        TaskError: They do not fit.
    """
    whole = not classes.is_floating_point()
    if scores.ndim < 2 or scores.shape[1] == 1:
        raise TaskError(
            f"scores of shape {tuple(scores.shape)} are of one class, whose cross-entropy is 0.\n"
            "1. Let the model return a score for each class, two of them for yes and no.\n"
            "2. Or write a Task with binary_cross_entropy_with_logits(..., reduction='none')."
        )
    expected = (scores.shape[0], *scores.shape[2:]) if whole else tuple(scores.shape)
    if tuple(classes.shape) != expected:
        kind = "whole numbers" if whole else f"probabilities ({_name(classes)})"
        raise TaskError(
            f"classes that are {kind} have the shape {expected} for scores of shape "
            f"{tuple(scores.shape)}, found {tuple(classes.shape)}.\n"
            "1. Let an example's class be one whole number.\n"
            f"2. {_OWN}"
        )
    given = classes.long() if whole else classes.to(scores)
    return F.cross_entropy(scores, given, reduction="none", label_smoothing=label_smoothing)


def squared_errors(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of each example, ``(b,)``.

    Args:
        scores: ``(b, ...)``.
        targets: Of that shape, but for dimensions of 1.

    Raises:
        TaskError: They do not fit.
    """
    if _sizes(scores) != _sizes(targets):
        raise TaskError(
            f"targets have the shape of what the model returns, {tuple(scores.shape)}, found "
            f"{tuple(targets.shape)}.\n"
            "1. Give each example a target of that shape.\n"
            f"2. {_OWN}"
        )
    errors = F.mse_loss(scores, targets.to(scores).view_as(scores), reduction="none")
    return errors.flatten(1).mean(1) if errors.ndim > 1 else errors


def label_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return of each example the mean of its labels' binary cross-entropies, ``(b,)``.

    Args:
        scores: ``(b, labels)``.
        labels: 1 for those that it has, 0 for others, of that shape.

    Raises:
        TaskError: They do not fit.
    """
    if scores.shape != labels.shape:
        raise TaskError(
            f"labels have the shape of the model's scores, {tuple(scores.shape)}, found "
            f"{tuple(labels.shape)}.\n"
            "1. Give each example a 0 or 1 for each label; or whole numbers for one class each.\n"
            f"2. {_OWN}"
        )
    each = F.binary_cross_entropy_with_logits(scores, labels.to(scores), reduction="none")
    return each.flatten(1).mean(1)


def _sizes(tensor: Tensor) -> list[int]:
    return [tensor.shape[0], *(n for n in tensor.shape[1:] if n != 1)] if tensor.ndim else []


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
