"""Why some optimizers' steps are not divided among examples; by the names of their classes."""

from __future__ import annotations

_ELSEWHERE = "takes gradients at other weights than those that it moves"
_LOW = "rounds its momentum to a few bits after each step; of such ones torchao's are split"
_ROOTS = "multiplies by roots of sums of products of gradients, for which there is no rule"
_REASONS = {
    "LBFGS": "searches along a line, with several gradients a step",
    "Lookahead": "puts an average with earlier weights in place every few steps",
    "SOAP": "steps along eigenvectors of its own state; of such ones pytorch_optimizer's is split",
    "Shampoo": _ROOTS,
    "ScalableShampoo": _ROOTS,
    **dict.fromkeys(("SAM", "GSAM", "WSAM", "BSAM", "LookSAM"), _ELSEWHERE),
    **{f"Adam{w}{bits}": _LOW for w in ("", "W") for bits in ("8bit", "4bit", "Fp8")},
}


def reason(name: str) -> str:
    """Return why an optimizer's steps are not split, to follow its name; nothing if unknown."""
    found = _REASONS.get(name.rpartition(".")[2])
    return f" (it {found})" if found else ""
