"""PyTorch's own sample inputs of conv2d and conv_transpose2d, and its error inputs, through convlib.torch."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra torch)")
pytest.importorskip("expecttest", reason="expecttest, which PyTorch's own tests need, is not installed (extra peers)")

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

import convlib.torch  # noqa: E402

OPERATORS = {op.name.rpartition(".")[2]: op for op in op_db if "conv" in op.name and op.name.endswith("2d")}


def check_close(got, wanted):
    """To PyTorch's tolerance; its complex64, less accurate than ours, may round elements as the largest of them are."""
    loose = {}
    if wanted.dtype is torch.complex64:
        loose = {"rtol": 1.3e-6, "atol": 1.3e-6 * float(wanted.detach().abs().max())}
    torch.testing.assert_close(got, wanted, **loose)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_every_sample_gives_the_same_result_and_the_same_gradients(name, dtype):
    ours, theirs = getattr(convlib.torch, name), getattr(torch.nn.functional, name)
    tried = 0
    for sample in OPERATORS[name].sample_inputs("cpu", dtype, requires_grad=True):
        operands = [a for a in (sample.input, *sample.args) if isinstance(a, torch.Tensor)]
        wanted = theirs(sample.input, *sample.args, **sample.kwargs)
        got = ours(sample.input, *sample.args, **sample.kwargs)
        check_close(got, wanted)
        grad = torch.randn_like(wanted)
        both = [torch.autograd.grad(y, operands, grad) for y in (got, wanted)]
        for one, other in zip(*both, strict=True):
            check_close(one, other)
        tried += 1
    assert tried >= 10


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_what_pytorch_refuses_is_refused(name):
    operator = OPERATORS[name]
    if operator.error_inputs_func is None:
        assert name == "conv_transpose2d", "PyTorch has error inputs of conv2d"
        return
    for error in operator.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            getattr(convlib.torch, name)(sample.input, *sample.args, **sample.kwargs)
