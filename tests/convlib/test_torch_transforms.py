"""torch.func's transforms of the PyTorch adapter, and forward derivatives: as PyTorch's own, or refused."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

import convlib.torch  # noqa: E402
from convlib.torch import conv2d, conv_transpose2d  # noqa: E402


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, 0), (None, 0, None), (1, 0, None)], ids=str)
def test_vmap_is_a_loop(in_dims):
    torch.manual_seed(0)
    shapes = ((2, 4, 6, 7), (6, 4, 3, 2), (6,))
    batched = [s if d is None else (*s[:d], 3, *s[d:]) for s, d in zip(shapes, in_dims, strict=True)]
    arguments = [torch.randn(shape) for shape in batched]
    got = torch.func.vmap(lambda x, w, b: conv2d(x, w, b, padding=1), in_dims)(*arguments)
    for i in range(3):
        one = [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
        torch.testing.assert_close(got[i], F.conv2d(*one, padding=1), rtol=1e-4, atol=1e-4)


def dual(f, x):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))))


TRANSFORMS = {
    "grad": lambda f, *at: torch.func.grad(lambda *a: f(*a).square().sum(), (0, 1, 2))(*at),
    "hessian": lambda f, *at: torch.func.hessian(lambda *a: f(*a).square().sum(), (0, 1, 2))(*at),
    "jacrev of jacrev": lambda f, *at: torch.func.jacrev(torch.func.jacrev(lambda *a: f(*a).square().sum()), 1)(*at),
    "jvp": lambda f, *at: torch.func.jvp(f, at, tuple(a.cos() for a in at)),
    "jvp by bias": lambda f, x, w, b: torch.func.jvp(lambda b: f(x, w, b), (b,), (b.cos(),)),
    "a gradient for each image": lambda f, x, w, b: torch.func.vmap(
        torch.func.grad(lambda x, w: f(x[None], w, b).square().sum(), 1), (0, None)
    )(x, w),
    "dual tensors": lambda f, x, *others: dual(lambda x: f(x, *others), x),
    "compiled": lambda f, *at: torch.compile(lambda *a: TRANSFORMS["jvp"](f, *a), backend="eager")(*at),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_and_forward_derivatives_are_pytorchs(transform):
    torch.manual_seed(0)
    x, b = torch.randn(2, 2, 4, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    w = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    for ours, theirs in ((conv2d, F.conv2d), (conv_transpose2d, F.conv_transpose2d)):
        got, wanted = (TRANSFORMS[transform](lambda *a, f=f: f(*a, 2, 1), x, w, b) for f in (ours, theirs))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_many_gradients_at_once_are_pytorchs(name, dtype):
    found = []
    for function in (getattr(convlib.torch, name), getattr(F, name)):
        torch.manual_seed(0)
        at = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((1, 2, 4, 3), (2, 2, 3, 2), (2,))]
        y = function(*at, 2, 1)
        grads = torch.randn(3, *y.shape, dtype=dtype)
        found.append(torch.autograd.grad(y, at, grads, is_grads_batched=True))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("call", [convlib.conv2d, torch.ops.convlib.conv2d], ids=["convlib.conv2d", "the operator"])
def test_what_takes_no_tangent_along_refuses_it(call):
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
        others = (None, [1, 1], [0] * 4, [1, 1], 1) if call is not convlib.conv2d else ()
        with pytest.raises(TypeError, match="x: has a tangent, and convlib.conv2d takes none along"):
            call(x, torch.ones(1, 1, 2, 2), *others)
