"""What is said of every operation, where its operand holds the examples, against its Jacobian.

All sizes are 6 or 12, so that no size tells which dimension holds 6 examples.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.operations import table
from replay.gradients.operations.graph import walk
from replay.gradients.proof.steady import Spread, places

N = 6
ORDER = torch.tensor([3, 1, 0, 5, 4, 2])
C = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)).double()


def double(build, *arguments, **options):
    torch.manual_seed(0)
    return build(*arguments, **options).double()


OPERATIONS = {  # by name: the dimensions of the result of which something is said
    "product": ("01", lambda x: x @ C),
    "from-the-left": ("02", lambda x: C @ x),
    "with-itself": ("0", lambda x: x @ x.mT),
    "matrix": ("0", lambda x: x[0] @ C),
    "matrix-left": ("1", lambda x: C @ x[0]),
    "addmm": ("0", lambda x: torch.addmm(x[1], x[0], C)),
    "addmm-right": ("1", lambda x: torch.addmm(x[1], C, x[0])),
    "baddbmm": ("0", lambda x: torch.baddbmm(x, x, x)),
    "vector": ("0", lambda x: x[0] @ C[0]),
    "addmv": ("", lambda x: torch.addmv(x[1, 0], x[0], C[0])),
    "times-vector": ("", lambda x: C @ x[0, 0]),
    "einsum": ("02", lambda x: torch.einsum("abc,bd->adc", x, C)),
    "linear": ("01", lambda x: F.linear(x, C, C[0])),
    "linear-by-activations": ("1", lambda x: F.linear(C, x[0])),
    "broadcast": ("2", lambda x: x + x[0, 0]),
    "broadcast-last": ("01", lambda x: x * x[:, :, :1]),
    "expand": ("023", lambda x: x[:, None].expand(6, 6, 6, 6)),
    "expand-first": ("12", lambda x: x[0].expand(6, 6, 6)),
    "repeat": ("02", lambda x: x.repeat(1, 2, 1)),
    "repeat-inside": ("12", lambda x: x[0].repeat(2, 1, 1)),
    "permute": ("012", lambda x: x.permute(2, 0, 1)),
    "transpose": ("012", lambda x: x.transpose(0, -1)),
    "t": ("01", lambda x: x[0].t()),
    "view": ("1", lambda x: x.reshape(36, 6)),
    "view-apart": ("", lambda x: x.reshape(2, 3, 36)),
    "view-twice": ("012", lambda x: x.reshape(36, 6).reshape(6, 6, 6).sin()),
    "unflatten": ("0", lambda x: x.reshape(216).unflatten(0, (6, -1))),
    "squeeze": ("012", lambda x: x[:, None].squeeze(1).unsqueeze(-1)),
    "sum": ("01", lambda x: x.sum(1)),
    "sum-keep": ("1", lambda x: x.sum((0, -1), keepdim=True)),
    "mean": ("0", lambda x: x.mean((0, 1))),
    "std": ("01", lambda x: x.std(-2)),
    "var-mean": ("12", lambda x: torch.stack(torch.var_mean(x, 1))),
    "max": ("01", lambda x: x.max(1).values),
    "median": ("12", lambda x: x.median(0, keepdim=True).values),
    "kthvalue": ("01", lambda x: x.kthvalue(2, -1).values),
    "norm": ("01", lambda x: x.norm(dim=1)),
    "logsumexp": ("0", lambda x: x.logsumexp((1, 2))),
    "prod": ("01", lambda x: x.prod(0)),
    "softmax": ("02", lambda x: x.softmax(1)),
    "log-softmax": ("01", lambda x: x.log_softmax(-1)),
    "cumsum": ("12", lambda x: x.cumsum(0)),
    "cumprod": ("01", lambda x: x.cumprod(-1)),
    "cummax": ("02", lambda x: x.cummax(1).values),
    "sort": ("02", lambda x: x.sort(1).values),
    "topk": ("12", lambda x: x.topk(6, 0).values),
    "flip": ("0", lambda x: x.flip(1, 2)),
    "roll": ("12", lambda x: x.roll(1, 0)),
    "roll-flat": ("", lambda x: x.roll(1)),
    "glu": ("02", lambda x: F.glu(torch.cat([x, x], 1), 1)),
    "gather": ("01", lambda x: x.gather(-1, ORDER.expand(6, 6, 6))),
    "gather-first": ("12", lambda x: x.gather(0, ORDER[:, None, None].expand(6, 6, 6))),
    "gather-less": ("2", lambda x: x.gather(1, ORDER[None, :2, None].expand(1, 2, 6))),
    "index-select": ("02", lambda x: x.index_select(1, ORDER)),
    "index": ("02", lambda x: x[:, ORDER]),
    "index-rows": ("01", lambda x: x[torch.arange(6), ORDER]),
    "index-rows-column": ("02", lambda x: x[torch.arange(6)[:, None], ORDER[None, :]]),
    "index-columns-row": ("12", lambda x: x[torch.arange(6)[None, :], ORDER[:, None]]),
    "index-other-order": ("1", lambda x: x[ORDER, torch.arange(6)]),
    "index-apart": ("01", lambda x: x[torch.arange(6), :, ORDER]),
    "index-apart-later": ("2", lambda x: x[None][:, ORDER, :, torch.arange(6)]),
    "index-mask": ("", lambda x: x[:, C[0] > -1]),
    "select": ("01", lambda x: x[:, -1]),
    "slice": ("02", lambda x: torch.cat([x, x], 1)[:, 3:9]),
    "slice-half": ("012", lambda x: torch.cat([x, x], 1)[:, 6:]),
    "slice-negative": ("012", lambda x: torch.cat([x, x], 1)[:, -6:]),
    "slice-step": ("02", lambda x: torch.cat([x, x], 1)[:, ::2]),
    "split": ("02", lambda x: torch.cat([p.sin() for p in x.split(2, 1)][::-1], 1)),
    "split-halves": ("012", lambda x: torch.cat([x, x], 1).chunk(2, 1)[1]),
    "split-sizes": ("12", lambda x: x.split([1, 3, 2], 0)[1]),
    "unbind": ("12", lambda x: torch.stack(x.unbind(1)[::-1])),
    "unbind-in-order": ("012", lambda x: torch.stack([h.sin() for h in x.unbind(1)])),
    "rows-in-order": ("02", lambda x: torch.cat([x[i : i + 1].sort(1).values for i in range(6)])),
    "rows-selected": (
        "1",
        lambda x: torch.stack([x[:, i].flatten().sort().values for i in range(6)], 1),
    ),
    "cat-two": ("12", lambda x: torch.cat([x, 2 * x])),
    "slice-uneven": ("", lambda x: x.reshape(24, 9)[:, :6]),
    "cat-uneven": ("23", lambda x: torch.cat([x[:3], x, x[3:]]).reshape(2, 6, 6, 6)),
    "across": ("0", lambda x: F.pad(x, (0, 2)).reshape(48, 6).softmax(-1).reshape(6, 6, 8)),
    "half-turn": ("", lambda x: x.reshape(2, 3, 36).flip(0).reshape(6, 36)),
    "stack-last": ("012", lambda x: torch.stack([x, 2 * x], 3)),
    "addmm-bias": ("1", lambda x: torch.addmm(x[0, 0], C, C)),
    "cat-empty": ("012", lambda x: torch.cat([x.flatten()[:0], x], 1)),
    "cat-constant": ("12", lambda x: torch.cat([C[None], x])[1:]),
    "stack": ("3", lambda x: torch.stack([x, x.transpose(0, 1)], 1)),
    "pad": ("01", lambda x: F.pad(x, (1, -1))),
    "pad-first": ("12", lambda x: F.pad(x, (0, 0, 0, 0, 1, -1))),
    "reflect": ("01", lambda x: F.pad(x, (1, 1), mode="reflect")),
    "unfold-windows": ("02", lambda x: x.unfold(1, 1, 1)),
    "tril": ("012", lambda x: x.tril()),
    "where": ("0", lambda x: torch.where(C > 0.5, x, x.mT)),
    "layer-norm": ("01", lambda x: F.layer_norm(x, (6,), C[0], C[1])),
    "layer-norm-two": ("0", lambda x: F.layer_norm(x, (6, 6))),
    "layer-norm-weight": ("", lambda x: F.layer_norm(C, (6,), x[0, 0])),
    "rms-norm": ("01", lambda x: F.rms_norm(x, (6,))),
    "group-norm": ("0", lambda x: F.group_norm(x, 6)),
    "batch-norm": ("1", lambda x: F.batch_norm(x, None, None, C[0], training=True)),
    "batch-norm-weight": ("1", lambda x: F.batch_norm(C, C[0], C[1], x[0, 0], x[1, 0])),
    "batch-norm-eval": ("012", lambda x: F.batch_norm(x, C[0], C[1])),
    "instance-norm": ("01", lambda x: F.instance_norm(x, weight=C[0])),
    "attention": ("1", lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])),
    "attention-heads": (
        "0",
        lambda x: F.scaled_dot_product_attention(*(x[:, None] for _ in range(3))),
    ),
    "conv1d": ("0", double(nn.Conv1d, 6, 6, 3, padding=1)),
    "conv-by-activations": (
        "",
        lambda x: F.conv1d(C[:, :, None].expand(6, 6, 6), x, padding=3)[..., :6],
    ),
    "conv-bias": ("", lambda x: F.conv1d(C[None].expand(6, 6, 6), C[:, :, None], x[0, 0])),
    "conv-transposed": ("0", double(nn.ConvTranspose1d, 6, 6, 1)),
    "conv2d": ("", lambda x: F.conv2d(x[None], C[:, :, None, None])),
    "max-pool": ("01", lambda x: F.max_pool1d(x, 3, 1, 1)),
    "max-pool2d": ("0", lambda x: F.max_pool2d(x, 3, 1, 1)),
    "avg-pool2d": ("1", lambda x: F.avg_pool2d(x[None], 3, 1, 1)),
    "adaptive": ("0", lambda x: F.adaptive_avg_pool2d(x, 6)),
    "adaptive-max": ("1", lambda x: F.adaptive_max_pool2d(x[None], 6)),
    "upsample": ("1", lambda x: F.interpolate(x[None], size=(6, 12), mode="bilinear")),
    "unfold": ("0", lambda x: F.unfold(x[:, None], 2, stride=1)),
    "fold": ("0", lambda x: F.fold(x[:, None].reshape(6, 6, 6), (3, 2), 1)),
    "pixel-shuffle": ("0", lambda x: F.pixel_shuffle(x.reshape(6, 4, 3, 3), 2)),
    "grid-sample": (
        "0",
        lambda x: F.grid_sample(
            x[:, None],
            C.expand(6, 6, 6)[..., None].tanh().expand(-1, -1, -1, 2),
            align_corners=False,
        ),
    ),
    "grid": (
        "0",
        lambda x: F.grid_sample(
            C.expand(6, 6, 6)[:, None],
            x[..., None].tanh().expand(-1, -1, -1, 2),
            align_corners=False,
        ),
    ),
    "unpool": ("01", lambda x: F.max_unpool1d(x, ORDER.expand(6, 6, 6), 1)),
    "fft": ("02", lambda x: torch.view_as_real(torch.fft.fft(x, dim=1))),
    "rfft": ("12", lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=0), dim=0, n=6)),
    "complex": ("01", lambda x: torch.view_as_complex(x.reshape(6, 6, 3, 2)).abs()),
    "cross": ("01", lambda x: torch.linalg.cross(x[..., :3], x[..., 3:])),
    "inverse": ("0", lambda x: torch.linalg.inv(x + 9 * torch.eye(6).double())),
    "nll": ("0", lambda x: F.nll_loss(x[0], ORDER, reduction="none")),
    "nll2d": ("01", lambda x: F.nll_loss(x, ORDER.expand(6, 6), reduction="none")),
    "margin": ("0", lambda x: F.multi_margin_loss(x[0], ORDER, reduction="none")),
    "bce": (
        "012",
        lambda x: F.binary_cross_entropy_with_logits(x, C.expand(6, 6, 6), reduction="none"),
    ),
    "ctc": (
        "0",
        lambda x: F.ctc_loss(
            x.log_softmax(-1), ORDER[:, None].clamp_min(1), [6] * 6, [1] * 6, reduction="none"
        ),
    ),
    "prelu": ("012", lambda x: F.prelu(x, C[0])),
    "slopes": ("1", lambda x: F.prelu(C, x[0, 0])),
    "lstm": ("1", lambda x: double(nn.LSTM, 6, 6)(x)[0]),
    "lstm-state": ("1", lambda x: double(nn.LSTM, 6, 6)(x)[1][0]),
    "copy": ("12", lambda x: torch.zeros(6, 6, 6).double().copy_(x[0])),
    "in-place": ("", lambda x: torch.zeros(6, 6, 6).double().index_copy(0, ORDER, x)),
    "bag": ("", lambda x: F.embedding_bag(ORDER.expand(6, 6), x[0], mode="sum")),
    "bilinear": ("", lambda x: F.bilinear(C, C, x)),
    "take": ("", lambda x: torch.take(x, ORDER.expand(6, 6))),
    "diagonal": ("", lambda x: x.diagonal()),
}


def jacobian_says(losses, h, inner):
    """Return whether entry e of h moves no loss but that of example e // inner % n."""
    owner = torch.arange(h.numel()) // inner % N
    for i in range(N):
        (own,) = torch.autograd.grad(losses[i], h, retain_graph=True)
        if own.flatten()[owner != i].abs().max() > 0:
            return False
    return True


def said(run, dtype=torch.float64):
    """Yield, for each dimension that may hold the examples, what is said, and whether it is so."""
    torch.manual_seed(2)
    h = torch.rand(6, 6, 6, dtype=dtype, requires_grad=True).clone()
    out = run(h)
    for dim in range(out.dim()):
        if out.shape[dim] == N:
            losses = out.movedim(dim, 0).reshape(N, -1).sin().sum(1)
            place = places(walk(losses, {}), N).get((h.grad_fn, 0))
            found = isinstance(place, Spread)
            yield dim, found, not found or jacobian_says(losses, h, place.inner)


def agrees(dims, run, dtype=torch.float64):
    results = list(said(run, dtype))
    assert all(right for _, _, right in results)
    assert "".join(str(dim) for dim, known, _ in results if known) == dims


@pytest.mark.parametrize(("dims", "run"), OPERATIONS.values(), ids=OPERATIONS)
def test_what_is_said_of_an_operation_is_so(dims, run):
    agrees(dims, run)


@pytest.mark.parametrize("read", [lambda r: r[0], lambda r: r[1][0]], ids=["results", "state"])
def test_a_fused_layer_of_an_lstm(read):
    layer = nn.LSTM(6, 6)
    agrees("1", lambda x: read(layer(x)), torch.float32)


def test_nothing_is_said_where_a_setting_cannot_be_read(monkeypatch):
    """As in a version of torch that names it otherwise."""
    run = OPERATIONS["softmax"][1]
    agrees("02", run)
    monkeypatch.setitem(table._RECORDED, "SoftmaxBackward0", ("_saved_axis",))
    agrees("", run)
