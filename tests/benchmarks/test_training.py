"""A network of ResNet-18's size trains to PyTorch's losses, and what does not gets no time."""

import pytest

from benchmarks import engine, gate, training

pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")


def test_ten_steps_give_pytorchs_losses():
    networks = training.both()
    assert {type(m).__module__ for m in networks[1].modules() if "Conv2d" in type(m).__name__} == {"convlib.torch"}
    assert sum(p.numel() for p in networks[1].parameters()) > 11_000_000
    theirs, ours = (training.Trainer(network) for network in networks)
    begun = training.Trainer(training.resnet18())()
    assert training.loss_error(theirs, ours, steps=10) <= 1e-4
    assert theirs() < 0.8 * begun  # they learn, so that losses that agree say something


def test_other_losses_get_no_time(monkeypatch):
    from convlib import torch_operators

    monkeypatch.setattr(torch_operators, "backward_conv2d", wrong(torch_operators.backward_conv2d))
    with pytest.raises(gate.GateError, match="losses differ by"):
        training.measure(engine.Settings(rounds=1), 2)


def wrong(backward):
    """Weight gradients a hundredth too large."""

    def scaled(context, grad):
        by_x, by_w, *rest = backward(context, grad)
        return by_x, by_w * 1.01, *rest

    return scaled
