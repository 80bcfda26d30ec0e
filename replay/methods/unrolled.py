r"""The derivative of the counterfactual: what scaling an example down by a little would have done.

    unrolled(z, z') = −∂φ(w_T, z') / ∂s_z   at s = 1,

``s_z`` scaling all of z's ``c_i``, differentiated through the whole run: parameters, momentum,
second moments, clipping, decay, BatchNorm's running statistics. TracIn accounts for the path that
was taken; this is how the path would have moved. For plain SGD ``λ_t = (I − η H_t) λ_{t+1}``, and
a visit earns ``η c_i ⟨λ_{t+1}, g_i⟩``. Completeness is not claimed: scores do not add up to a drop.

Source: Hara, Nitanda and Maehara, NeurIPS 2019 (arXiv 1906.08473), for SGD; here for every rule.
"""

from __future__ import annotations

from replay.methods.method import Method
from replay.methods.names import UNROLLED
from replay.path.unrolling import Unrolling

METHOD = Method(UNROLLED, unroll=Unrolling)
