"""Why some optimizers' steps are not divided among examples; by the names of their classes."""

from __future__ import annotations

_ELSEWHERE = "takes gradients at other weights than those that it moves"
_LOW = (
    "rounds its momentum to a few bits after each step, by 1 to 16 % of it, which is linear in no "
    "gradient"
)
_BASIS = (
    "steps along eigenvectors of its own state, and a gradient that is off in its last bit puts a "
    "step off by half"
)
_REASONS = {
    "LBFGS": "searches along a line, with several gradients a step",
    "Lookahead": "puts an average with earlier weights in place every few steps",
    "SOAP": _BASIS,
    "Shampoo": _BASIS,
    "ScalableShampoo": _BASIS,
    **dict.fromkeys(("SAM", "GSAM", "WSAM", "BSAM", "LookSAM"), _ELSEWHERE),
    **{f"Adam{w}{bits}": _LOW for w in ("", "W") for bits in ("8bit", "4bit", "Fp8")},
}


def reason(name: str) -> str:
    """Return why an optimizer's steps are not split, to follow its name; nothing if unknown."""
    found = _REASONS.get(name.rpartition(".")[2])
    return f" (it {found})" if found else ""
