"""The layer tables agree with themselves and with ConvProblem."""

import pytest

from convlib import layers


@pytest.mark.parametrize("network", layers.networks())
def test_every_layer_agrees_with_the_problem_made_of_it(network):
    rows = [row for row in layers.tables()[network]["layers"] if row["type"] == "conv"]
    for row, layer in zip(rows, layers.layers(network), strict=True):
        assert (layer.problem.P, layer.problem.Q, layer.problem.macs) == (row["P"], row["Q"], row["macs"])
        assert (layer.macs, layer.count) == (row["macs"], row["count"])


@pytest.mark.parametrize("network", layers.networks())
def test_totals_are_the_sums_of_the_layers(network):
    table = layers.tables()[network]
    assert table["occurrences"] == sum(row["count"] for row in table["layers"])
    assert table["distinct"] == len(table["layers"])
    assert table["conv_macs"] == sum(row["macs"] * row["count"] for row in table["layers"])


def test_names_tell_the_layers_of_a_network_apart():
    for network in layers.networks():
        names = [layer.name for layer in layers.layers(network)]
        assert len(set(names)) == len(names)


def test_unknown_network_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="network: one of article_mnist_cnn, .* needed, got 'alexnet'"):
        layers.layers("alexnet")
