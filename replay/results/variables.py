"""What a result file holds: each variable once. docs/result-format.md lists the same.

A file has dimension scales (the IDs of test and training examples, the numbers of steps) and
variables over them. xarray opens it labelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from replay.methods.names import TRACINCP

VALUE = "test value"  # the unit of what the attribute ``unit`` describes
LOSS = "training loss"


@dataclass(frozen=True)
class Variable:
    """One kind of variable of a result file.

    Attributes:
        name: Its name, with ``{method}`` and ``{term}`` where there is one for each.
        dimensions: Any of ``test``, ``train``, ``step``, ``period``.
        dtype: Type in memory; ``bool`` is stored as int8, 0 or 1.
        unit: Unit of its numbers; none for counts and shares.
        meaning: What it says.
    """

    name: str
    dimensions: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str

    def called(self, method: str = "", term: str = "") -> str:
        """Return the name of one variable of this kind."""
        return self.name.format(method=method, term=term)

    def described(self, method: str = "", term: str = "") -> str:
        """Return what one variable of this kind says."""
        return self.meaning.format(method=method, term=term)


@dataclass(frozen=True)
class Format:
    """One kind of result file.

    Attributes:
        name: The attribute ``format``.
        version: The attribute ``format_version`` that is written; earlier ones are read.
        content: What it holds, in words.
        loader: What reads it.
        dimensions: Its dimension scales, by what they list.
        sometimes: Those of them that a file may lack.
    """

    name: str
    version: int
    content: str
    loader: str
    dimensions: dict[str, str]
    sometimes: tuple[str, ...] = ()


INFLUENCE = Format(
    name="tracin-influence",
    version=1,
    content="influence",
    loader="Influence.load",
    dimensions={
        "test": "IDs of the test examples: the rows",
        "train": "IDs of the training examples: the columns",
        "step": "steps of the run that were looked at",
        "period": "periods: epochs, or the first steps of stretches of the run",
    },
    sometimes=("period",),
)
_PAIRS, _STEPS, _TRAIN = ("test", "train"), ("step", "test"), ("train",)
SCORES = Variable("{method}", _PAIRS, "float64", VALUE, "{method} influence; positive = proponent")
SCORES_BY_PERIOD = Variable(
    "{method}_by_period",
    ("period", "test", "train"),
    "float64",
    VALUE,
    "what {method} credits in each period; its sums are the scores",
)
PERIOD_OF_STEP = Variable("period_of_step", ("step",), "int64", "", "the period of each step")
DROPS = Variable(
    "drop_{method}",
    _STEPS,
    "float64",
    VALUE,
    "the drop that {method} divides: measured or predicted",
)
TERMS = Variable(
    "{method}_{term}", _STEPS, "float64", VALUE, "the term {term} of the completeness identity"
)
SPLIT_ERROR = Variable(
    "quadrature_split_error",
    _STEPS,
    "float64",
    "",
    "how far the split may be off, relative to its norm; NaN: not looked at",
)
THETA_INSIDE = Variable(
    "quadrature_theta_inside", _STEPS, "bool", "", "whether the split meets the measured drop"
)
GRADIENTS = Variable(
    "quadrature_gradients", _STEPS, "int64", "", "gradients of the test example that were taken"
)
QUADRATURE = {
    "split_error": SPLIT_ERROR,
    "theta_inside": THETA_INSIDE,
    "gradients": GRADIENTS,
}

BEFORE = Variable(
    "value_before", ("test",), "float64", VALUE, "test values at the first state that was looked at"
)
AFTER = Variable(
    "value_after", ("test",), "float64", VALUE, "test values at the last state that was looked at"
)
VALUES = {"before": BEFORE, "after": AFTER}

SELF_INFLUENCE = Format(
    name="tracin-self-influence",
    version=1,
    content="self-influence",
    loader="SelfInfluence.load",
    dimensions={
        "train": "IDs of the training examples",
        "period": "periods: epochs, or the first steps of stretches of the run",
    },
    sometimes=("period",),
)
SELF = Variable(
    "self", _TRAIN, "float64", LOSS, "what an example's own part of its steps did to its loss"
)
OWN_DROP = Variable(
    "own_drop",
    _TRAIN,
    "float64",
    LOSS,
    "what the whole steps that an example was in did to its loss",
)
VISITS = Variable("visits", _TRAIN, "int64", "", "how often the run used an example")
OWN_LOSS = Variable(
    "loss", _TRAIN, "float64", LOSS, "mean of the losses of an example's visits; NaN: never visited"
)
AT_CHECKPOINTS = Variable(
    TRACINCP.name,
    _TRAIN,
    "float64",
    LOSS,
    "squared gradient norms at checkpoints, times learning rates",
)
SELF_SCORES = {
    "self": SELF,
    "own_drop": OWN_DROP,
    "loss": OWN_LOSS,
    TRACINCP.name: AT_CHECKPOINTS,
}
SELF_BY_PERIOD = Variable(
    "{term}_by_period", ("period", "train"), "float64", LOSS, "{term} in each period"
)
VISITS_BY_PERIOD = Variable(
    "visits_by_period", ("period", "train"), "int64", "", "how often each period used an example"
)

COUNTERFACTUAL = Format(
    name="tracin-counterfactual",
    version=1,
    content="counterfactual runs",
    loader="Counterfactual.load",
    dimensions={
        "run": "numbers of the counterfactual runs",
        "step": "states of each run at which test values were taken",
        "test": "IDs of the test examples",
        "change": "IDs of the training examples that a run changed, run after run",
    },
)
VALUE_OF_RUN = Variable(
    "value", ("run", "step", "test"), "float64", VALUE, "test values of each counterfactual run"
)
BASELINE = Variable("baseline", ("step", "test"), "float64", VALUE, "test values of the run itself")
CHANGE_RUN = Variable("change_run", ("change",), "int64", "", "the run that changed an example")
CHANGE_SCALE = Variable(
    "change_scale", ("change",), "float64", "", "what its weights were multiplied by; 0: removed"
)

CHECKPOINT_SWEEP = Format(
    name="tracin-checkpoint-sweep",
    version=1,
    content="a sweep over checkpoints",
    loader="CheckpointSweep.load",
    dimensions={
        "row": "placement and number asked for of each choice of checkpoints",
        "test": "IDs of the test examples",
        "checkpoint": "the states of each choice, row after row",
    },
)
ERROR = Variable(
    "{term}_against_{method}",
    ("row", "test"),
    "float64",
    "",
    "{term} of the sum over checkpoints against {method}",
)
CHECKPOINT_ROW = Variable(
    "checkpoint_row", ("checkpoint",), "int64", "", "the row that a state belongs to"
)

FORMATS = (INFLUENCE, SELF_INFLUENCE, COUNTERFACTUAL, CHECKPOINT_SWEEP)
RUN_LOG = "tracin-run"  # what a run log says instead
