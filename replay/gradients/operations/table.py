r"""The operations that keep examples apart, or mix them, in the same way whatever data say.

Each comes with its rule (see ``dimensions``) and the attributes that the rule reads, which belong
to the graph's signature: another value is another graph. What is not listed (scattering, masked
selection, lookups in activations, sparse products, autograd functions of anybody's own) may take
rows of any example anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from replay.gradients.operations import dimensions as by
from replay.gradients.operations import slices
from replay.gradients.operations.dimensions import Rule
from replay.gradients.operations.slices import Cut, Join

Node = Any
_INDEX, _SLICE = "IndexBackward0", "SliceBackward0"
T = TypeVar("T")

_ELEMENTWISE = (
    "Abs Acos Acosh Add Addcdiv Addcmul Alias Angle Asin Asinh Atan Atan2 Atanh Bernoulli "
    "BinaryCrossEntropy BinaryCrossEntropyWithLogits Ceil Celu Clamp ClampMax ClampMin Clone "
    "Complex Conj ConjPhysical Copysign Cos Cosh Deg2Rad Digamma Div Elu Erf Erfc Erfinv Exp Exp2 "
    "Expand Expm1 Floor Fmax Fmin Fmod Frac FusedDropout Gelu Hardshrink Hardsigmoid Hardswish "
    "Hardtanh HuberLoss Hypot I0 LeakyRelu Ldexp Lerp Lgamma Lift LiftFresh Log Log10 Log1P Log2 "
    "LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill Maximum Minimum Mish MseLoss Mul NanToNum "
    "NativeDropout Neg Polar Polygamma Pow PreluKernel Rad2Deg Reciprocal Relu Remainder Round "
    "RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh SmoothL1Loss SoftMarginLoss "
    "Softplus Softshrink SpecialEntr SpecialErfcx SpecialI0E SpecialI1 SpecialI1E SpecialLogNdtr "
    "SpecialNdtri SpecialXlog1Py Sqrt Sub Tan Tanh Threshold ToCopy Tril Triu Trunc Where "
    "Xlogy Repeat"
)
_RESHAPES = "MkldnnReshape ReshapeAlias ReshapeCopy Squeeze UnsafeView Unsqueeze View"
_REDUCTIONS = (
    "Amax0 Amin0 Aminmax0 Kthvalue0 LinalgVectorNorm0 Logsumexp0 Max0 Mean1 Median1 Min0 Mode0 "
    "Nanmedian1 Nansum0 Norm1 Norm3 Prod1 Std0 StdMean0 Sum1 Var0 VarMean0"
)
_ALONG = (
    "Cummax0 Cummin0 Cumprod0 Cumsum0 FftC2C0 FftC2R0 FftR2C0 Gather0 Glu0 IndexSelect0 "
    "LinalgCross0 LogSoftmax0 Logcumsumexp0 SafeSoftmax0 Softmax0 Sort0 Sort1 Topk0"
)
_WITHIN = {  # how many of the last dimensions they work in
    1: "ReflectionPad1D ReplicationPad1D UpsampleLinear1D UpsampleNearest1D UpsampleNearestExact1D",
    2: "AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D FractionalMaxPool2D LinalgCholeskyEx "
    "LinalgInvEx LinalgMatrixExp MaxPool2D MaxPool2DWithIndices MaxUnpool2D MkldnnMaxPool2D "
    "ReflectionPad2D ReplicationPad2D ScaledDotProductCudnnAttention "
    "ScaledDotProductEfficientAttention ScaledDotProductFlashAttention "
    "ScaledDotProductFlashAttentionForCpu ScaledDotProductFusedAttentionOverrideable "
    "UpsampleBicubic2D UpsampleBicubic2DAa UpsampleBilinear2D UpsampleBilinear2DAa "
    "UpsampleNearest2D UpsampleNearestExact2D",
    3: "AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D FractionalMaxPool3D MaxPool3DWithIndices "
    "MaxUnpool3D MkldnnMaxPool3D PixelShuffle PixelUnshuffle ReflectionPad3D ReplicationPad3D "
    "UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D",
}
_OF_ROWS = (
    "ConvDepthwise2D ConvDepthwise3D Convolution CudnnConvolution CudnnConvolutionTranspose "
    "MkldnnConvolution NativeGroupNorm NnpackSpatialConvolution SlowConv2D SlowConv3D "
    "SlowConvDilated2D SlowConvDilated3D SlowConvTranspose2D SlowConvTranspose3D"
)
_BATCH_NORMS = "CudnnBatchNorm MiopenBatchNorm NativeBatchNorm NativeBatchNormLegit"


def _named(names: str, overloads: Iterable[int] = (0,)) -> list[str]:
    return [f"{name}Backward{k}" for name in names.split() for k in overloads]


def _numbered(names: str) -> list[str]:
    """Return names of overloads that are meant one by one."""
    return [f"{name[:-1]}Backward{name[-1]}" for name in names.split()]


RESHAPES = frozenset(_named(_RESHAPES, range(6)))  # all entries, in the same order
_Row = tuple[list[str], T, tuple[str, ...]]  # names, what they do, the attributes it reads
_RULES: tuple[_Row[Rule], ...] = (
    ([*_named(_ELEMENTWISE, range(5)), "torch::autograd::CopyBackwards"], by.broadcast, ()),
    (_numbered(_REDUCTIONS), by.reduced, ("dim", "keepdim")),
    (_numbered(_ALONG), by.along, ("dim",)),
    (_named("Flip Roll"), by.along, ("dims",)),
    *((_named(names), by.leading(k), ()) for k, names in _WITHIN.items()),
    (_named(_OF_ROWS), by.first_operand, ()),
    (_named(_BATCH_NORMS, (0, 1)), by.batch_norm, ("training",)),
    (_named("FusedRmsNorm NativeLayerNorm"), by.normalized, ("normalized_shape",)),
    (_named("Permute"), by.permuted, ("dims",)),
    (_named("Transpose", (0, 1)), by.transposed, ("dim0", "dim1")),
    (_named("T"), by.t, ()),
    (_named("ConstantPadNd"), by.pad, ("pad",)),
    (_named("Unfold"), by.unfolded, ("dimension",)),
    (_named("Col2Im Im2Col"), by.windows, ()),
    (_named("ViewAsComplex ViewAsReal"), by.first_kept, ()),
    (_named("Bmm Mm"), by.product(0), ()),
    (_named("Addmm Baddbmm"), by.product(1), ("alpha", "beta")),
    (_named("Mv"), by.vector(0), ()),
    (_named("Addmv"), by.vector(1), ()),
    (_named("Linear MkldnnLinear"), by.linear, ()),
    (_named("GridSampler2D GridSampler3D ThnnFusedGruCell ThnnFusedLstmCell"), by.batch, ()),
    (_named("MkldnnRnnLayer"), by.unrolled, ()),
    (_named("CudnnRnn"), by.cudnn_unrolled, ("batch_first",)),
    (_named("MultiMarginLoss MultilabelMarginLoss NllLoss NllLoss2D"), by.removes(1), ()),
    (_named("CtcLoss CudnnCtcLoss", (0, 1)), by.removes(0, 2), ()),
    ([_INDEX], by.indexed, ()),
    (_named("Embedding"), by.shared, ("scale_grad_by_freq", "sparse")),  # read without the first
)
_CUTS: tuple[_Row[Cut], ...] = (
    (_named("Split UnsafeSplit"), slices.split, ("dim", "split_size")),
    (_named("SplitWithSizes UnsafeSplitWithSizes"), slices.split, ("dim", "split_sizes")),
    (_named("Select"), slices.select, ("dim", "index")),
    ([_SLICE], slices.cut, ("dim", "start", "step")),
    (_named("Unbind"), slices.unbind, ("dim",)),
)
_JOINS: tuple[_Row[Join], ...] = (
    (_named("Cat"), slices.cat, ("dim",)),
    (_named("Stack"), slices.stack, ("dim",)),
)


def _by_name(rows: Iterable[_Row[T]]) -> dict[str, T]:
    return {name: does for names, does, _ in rows for name in names}


RULES, CUTS, JOINS = _by_name(_RULES), _by_name(_CUTS), _by_name(_JOINS)
_RECORDED = {
    name: tuple(f"_saved_{attribute}" for attribute in attributes)
    for names, _, attributes in (*_RULES, *_CUTS, *_JOINS)
    for name in names
    if attributes
}


def recorded(node: Node, name: str, n: int) -> tuple[Any, ...] | None:
    """Return what the rule of a node reads besides shapes; None is not to be known.

    Args:
        node: Of the autograd graph.
        name: Its name.
        n: The number of examples.
    """
    attributes = _RECORDED.get(name)
    if attributes is None:
        return _indices(node, n) if name == _INDEX else ()
    try:
        values = tuple([getattr(node, attribute) for attribute in attributes])
    except AttributeError:  # of another version of torch
        return None
    # what starts at a place of its own may start elsewhere in a batch of another size
    return (*values, n) if name == _SLICE and values[1] else values


def _indices(node: Node, n: int) -> tuple[Any, ...] | None:
    """Return the ranks of ``x[indices]``, and where, from the last, the first one is 0, 1, ....

    Read at every pass: these are data.
    """
    indices: list[Tensor | None] = node._saved_indices
    if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return None
    ranks, first = tuple(None if index is None else index.dim() for index in indices), indices[0]
    if first is None or first.numel() != n or n not in first.shape:
        return ranks, None
    in_order = torch.equal(first.flatten(), torch.arange(n, device=first.device).to(first))
    return ranks, len(first.shape) - first.shape.index(n) if in_order else None
