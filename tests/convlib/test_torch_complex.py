"""The PyTorch adapter on complex tensors, and real ones beside them."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

import torch.nn.functional as F  # noqa: E402

from convlib.torch import conv2d, conv_transpose2d  # noqa: E402
from tests.convlib.test_torch import IDS, PARAMETERS, tensors  # noqa: E402

KINDS = {"input": (True, False), "weight": (False, True), "both": (True, True)}


def complex_tensors(kind, groups=1, transposed=False):
    """Operands of gradcheck, the bias complex; `kind` says which of the others are."""
    made = tensors(groups, torch.complex128, False, transposed)
    made = [t + 1j * torch.randn(t.shape, dtype=torch.float64) for t in made]
    flags = (*KINDS[kind], True)
    return [(t if flag else t.real.clone()).requires_grad_() for t, flag in zip(made, flags, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameters", PARAMETERS[:4], ids=IDS[:4])
def test_complex_gradients_of_conv2d_are_pytorchs_own(parameters, kind):
    ours = complex_tensors(kind, parameters.get("groups", 1))
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    y = conv2d(*ours, **parameters)
    wanted = F.conv2d(*(t.to(torch.complex128) for t in theirs), **parameters)
    torch.testing.assert_close(y, wanted)
    grad = torch.randn_like(wanted)
    for one, other in zip(torch.autograd.grad(y, ours, grad), torch.autograd.grad(wanted, theirs, grad), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameters", [{"stride": 2, "output_padding": 1}, {"groups": 2, "padding": 1}], ids=str)
def test_complex_gradients_of_conv_transpose2d_are_pytorchs_own(parameters, kind):
    ours = complex_tensors(kind, parameters.get("groups", 1), transposed=True)
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    y = conv_transpose2d(*ours, **parameters)
    wanted = F.conv_transpose2d(*(t.to(torch.complex128) for t in theirs), **parameters)
    torch.testing.assert_close(y, wanted)
    grad = torch.randn_like(wanted)
    for one, other in zip(torch.autograd.grad(y, ours, grad), torch.autograd.grad(wanted, theirs, grad), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_complex_gradients_of_both_orders_are_the_difference_quotients(kind):
    torch.manual_seed(0)
    x, w, _ = complex_tensors(kind)
    x, w = x.detach()[:1, :, :3, :3].requires_grad_(), w.detach()[:2, :, :2].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: conv2d(x, w, stride=2, padding=1), (x, w))
    x, w, _ = complex_tensors(kind, transposed=True)
    x, w = x.detach()[:1, :, :2, :2].requires_grad_(), w.detach()[:, :2, :2].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: conv_transpose2d(x, w, stride=2), (x, w))


def test_complex_operators_pass_pytorchs_own_checks():
    x, w, _ = complex_tensors("weight")
    torch.library.opcheck(torch.ops.convlib.conv2d.default, (x, w, None, [1, 1], [0] * 4, [1, 1], 1))


def test_conjugated_views_are_read_as_they_mean():
    x, w, _ = (t.detach() for t in complex_tensors("both"))
    torch.testing.assert_close(conv2d(x.conj(), w.conj()), F.conv2d(x, w).conj().resolve_conj())


def test_autocast_leaves_complex_numbers_alone():
    x, w, bias = complex_tensors("input")
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(x, w, bias).dtype == torch.complex128
