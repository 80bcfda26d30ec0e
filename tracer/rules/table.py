"""The update rules that can be split among examples, one row a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tracer.records import each, together
from tracer.rules.adadelta import Adadelta
from tracer.rules.adafactor import Adafactor
from tracer.rules.adagrad import Adagrad
from tracer.rules.adam import Adam
from tracer.rules.adamax import Adamax
from tracer.rules.asgd import ASGD
from tracer.rules.muon import Muon
from tracer.rules.nadam import NAdam
from tracer.rules.radam import RAdam
from tracer.rules.rmsprop import RMSprop
from tracer.rules.rprop import Rprop
from tracer.rules.rule import UpdateRule
from tracer.rules.several import Several
from tracer.rules.sgd import SGD

RULES: dict[str, UpdateRule] = {  # by exact type: AdamW subclasses Adam
    "SGD": SGD(),
    "Adam": Adam(),
    "AdamW": Adam(),
    "RMSprop": RMSprop(),
    "Adagrad": Adagrad(),
    "NAdam": NAdam(),
    "RAdam": RAdam(),
    "Adamax": Adamax(),
    "Adadelta": Adadelta(),
    "Adafactor": Adafactor(),
    "ASGD": ASGD(),
    "Rprop": Rprop(),
    "Muon": Muon(),
}
_GUESSED = ("betas.0", "momentum")  # what rules without a row are likely to call theirs


def rule_of(name: str, own: Mapping[str, UpdateRule]) -> UpdateRule | None:
    """Return how steps are split; None if no rule is known, or not that of each optimizer.

    Args:
        name: The update rules, as a log has them: with their module, if they are not torch's.
        own: Rules by a class's name, with its module or without.
    """
    known = [(one, _rule(one, own)) for one in each(name)]
    found = [(one, rule) for one, rule in known if rule is not None]
    if len(found) < len(known):
        return None
    return found[0][1] if len(found) == 1 else Several(found)


def unknown(name: str, own: Mapping[str, UpdateRule]) -> str:
    """Return those of the update rules, as a log has them, that are not known."""
    return together(one for one in each(name) if _rule(one, own) is None)


def _rule(name: str, own: Mapping[str, UpdateRule]) -> UpdateRule | None:
    return own.get(name) or own.get(name.rpartition(".")[2]) or RULES.get(name)


def momentum_of(name: str, defaults: Mapping[str, Any]) -> float:
    """Return the share of its last move that an optimizer repeats, for predictions; 0 if unknown.

    Args:
        name: Its update rule.
        defaults: Its hyperparameters, as torch has them.
    """
    spread = dict(defaults)
    for key, value in defaults.items():
        if isinstance(value, (tuple, list)):
            del spread[key]
            spread.update({f"{key}.{k}": one for k, one in enumerate(value)})
    names = (RULES[name].momentum,) if name in RULES else _GUESSED
    found = next((spread[one] for one in names if one in spread), 0.0)
    return float(found) if isinstance(found, (int, float, torch.Tensor)) else 0.0
