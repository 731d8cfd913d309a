"""Whole networks give PyTorch's outputs and train to its losses, and what does not gets no time."""

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from benchmarks import engine, gate, inference, networks, training

ROUND = engine.Settings(rounds=1)


def convolutions(network):
    return {type(m).__module__ for m in network.modules() if "Conv2d" in type(m).__name__}


def test_an_image_gives_pytorchs_outputs():
    assert sum(p.numel() for p in networks.resnet50().parameters()) > 25_000_000
    found = inference.measure(ROUND, 2)
    assert 0 < found.error <= 1e-4  # not the same bits, so not PyTorch's kernels in both
    assert found.torch_s > 0
    assert found.convlib_s > 0


def test_other_outputs_get_no_time(monkeypatch):
    from convlib.torch import Conv2d

    right = Conv2d._conv_forward
    monkeypatch.setattr(Conv2d, "_conv_forward", lambda *arguments: right(*arguments) * 1.001)
    with pytest.raises(gate.GateError, match="outputs differ by"):
        inference.measure(ROUND, 2)


def test_ten_steps_give_pytorchs_losses():
    both = networks.both(networks.resnet18())
    assert [convolutions(network) for network in both] == [{"torch.nn.modules.conv"}, {"convlib.torch"}]
    assert sum(p.numel() for p in both[1].parameters()) > 11_000_000
    theirs, ours = (training.Trainer(network) for network in both)
    begun = training.Trainer(networks.resnet18())()
    assert training.loss_error(theirs, ours, steps=10) <= 1e-4
    assert theirs() < 0.8 * begun  # they learn, so that losses that agree say something


def test_other_losses_get_no_time(monkeypatch):
    from convlib import torch_operators

    monkeypatch.setattr(torch_operators, "backward_conv2d", wrong(torch_operators.backward_conv2d))
    with pytest.raises(gate.GateError, match="losses differ by"):
        training.measure(ROUND, 2)


def wrong(backward):
    """Weight gradients a hundredth too large."""

    def scaled(context, grad):
        by_x, by_w, *rest = backward(context, grad)
        return by_x, by_w * 1.01, *rest

    return scaled
