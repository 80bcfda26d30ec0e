"""The update rules that can be split among examples, one row a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tracer.records import each
from tracer.rules.adabelief import AdaBelief
from tracer.rules.adadelta import Adadelta
from tracer.rules.adafactor import Adafactor
from tracer.rules.adagrad import Adagrad
from tracer.rules.adam import Adam
from tracer.rules.adamax import Adamax
from tracer.rules.asgd import ASGD
from tracer.rules.lamb import Lamb
from tracer.rules.lars import LARS
from tracer.rules.lion import Lion
from tracer.rules.low_bit import LowBitAdam, LowBitAdamW
from tracer.rules.muon import Muon
from tracer.rules.nadam import NAdam
from tracer.rules.prodigy import Prodigy
from tracer.rules.radam import RAdam
from tracer.rules.rmsprop import RMSprop
from tracer.rules.rprop import Rprop
from tracer.rules.rule import UpdateRule
from tracer.rules.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from tracer.rules.several import Several
from tracer.rules.sgd import SGD
from tracer.rules.soap import SOAP
from tracer.rules.sparse_adam import SparseAdam

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
    "SparseAdam": SparseAdam(),
    "Muon": Muon(),
}
OUTSIDE: dict[str, UpdateRule] = {  # of other packages, which are not imported
    "lion_pytorch.lion_pytorch.Lion": Lion(),
    "pytorch_optimizer.optimizer.lion.Lion": Lion(),
    "pytorch_optimizer.optimizer.adabelief.AdaBelief": AdaBelief(),
    "pytorch_optimizer.optimizer.lamb.Lamb": Lamb(),
    "pytorch_optimizer.optimizer.lars.LARS": LARS(),
    "pytorch_optimizer.optimizer.soap.SOAP": SOAP(),
    "prodigyopt.prodigy.Prodigy": Prodigy(),
    "schedulefree.sgd_schedulefree.SGDScheduleFree": ScheduleFreeSGD(),
    "schedulefree.adamw_schedulefree.AdamWScheduleFree": ScheduleFreeAdamW(),
}
for _bits in ("8bit", "4bit", "Fp8"):
    OUTSIDE[f"torchao.optim.adam.Adam{_bits}"] = LowBitAdam()
    OUTSIDE[f"torchao.optim.adam.AdamW{_bits}"] = LowBitAdamW()
KNOWN = RULES | OUTSIDE
_GUESSED = ("betas.0", "momentum")  # what rules without a row are likely to call theirs


Used = Callable[[str], bool]  # whether a hyperparameter was anything but 0 in the run


def rule_of(name: str, own: Mapping[str, UpdateRule], used: Used) -> UpdateRule | None:
    """Return how steps are split; None if no rule is known, or not that of each optimizer.

    Args:
        name: The update rules, as a log has them: with their module, if they are not torch's.
        own: Rules by a class's name, with its module or without.
        used: Says whether a hyperparameter was anything but 0 in the run.
    """
    known = [(one, _rule(one, own, used)) for one in each(name)]
    found = [(one, rule) for one, rule in known if rule is not None]
    if len(found) < len(known):
        return None
    return found[0][1] if len(found) == 1 else Several(found)


def refused(name: str, used: Used) -> list[str]:
    """Return options of a run's that make another rule, not split, of one that is known."""
    return [option for option in (KNOWN[name].refuses if name in KNOWN else ()) if used(option)]


def _rule(name: str, own: Mapping[str, UpdateRule], used: Used) -> UpdateRule | None:
    found = own.get(name) or own.get(name.rpartition(".")[2]) or KNOWN.get(name)
    return None if found is None or any(map(used, found.refuses)) else found


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
    names = (KNOWN[name].momentum,) if name in KNOWN else _GUESSED
    found = next((spread[one] for one in names if one in spread), 0.0)
    return float(found) if isinstance(found, (int, float, torch.Tensor)) else 0.0
