"""ONNX graphs in which a convolution does in its last store what otherwise other nodes do with its result.

    Conv, BatchNormalization, Add, Relu      become one node FusedConv of the domain convlib, which
    activation(conv(x, w) + bias + other)    one call of convlib's kernels computes

BatchNormalization is folded into weights and bias: with f = scale / sqrt(var + epsilon) of every filter,
f (w x + b - mean) + beta = (f w) x + f (b - mean) + beta. Relu, Clip from 0 to 6, LeakyRelu, and Sigmoid times its own
argument (SiLU) are activations. All of it only where nothing else reads what is between, and of a ConvTranspose only
the BatchNormalization.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper, shape_inference

DOMAIN = "convlib"
FUSED = "FusedConv"


def fused(model: ModelProto) -> ModelProto:
    """A copy of `model` whose convolutions take in the nodes behind them; initializers are taken for constants.

    For a ReferenceEvaluator with `convlib.onnx.operators`, and for nothing else: FusedConv is known to convlib alone.
    Nodes in the bodies of If, Loop and Scan stay as they are.

    >>> from onnx import parser
    >>> text = '<ir_version: 8, opset_import: ["": 13]> g (float[1,1,4,4] x, float[1,1,3,3] w) => (float[1,1,2,2] y)'
    >>> [node.op_type for node in fused(parser.parse_model(text + " { c = Conv(x, w) y = Relu(c) }")).graph.node]
    ['FusedConv']
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy.graph, shapes_in(shape_inference.infer_shapes(model).graph))
    for node in graph.nodes:
        if is_one_of(node, "Conv", "ConvTranspose"):
            graph.fold_normalization(node)
        if is_one_of(node, "Conv"):
            graph.fuse(node)
    graph.finish()
    if all(opset.domain != DOMAIN for opset in copy.opset_import):
        copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return copy


class Graph:
    """A graph, who reads what in it, and what becomes of its nodes.

    shapes: of values, as far as they are known. kept: values that somebody beside the graph's own nodes reads.
    gone: the ids of nodes that others have taken in. instead: for the last node that a convolution took in, by its id,
    the node that stands in its place.
    """

    def __init__(self, proto: GraphProto, shapes):
        self.proto, self.nodes, self.shapes = proto, list(proto.node), shapes
        self.constants = {tensor.name: tensor for tensor in proto.initializer}
        self.kept = {value.name for value in proto.output}
        self.readers: dict[str, list[NodeProto]] = {}
        self.gone: set[int] = set()
        self.instead: dict[int, NodeProto] = {}
        for node in self.nodes:
            self.kept.update(names_in_bodies(node))
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def only_reader(self, name, *types):
        """The node that reads `name`, if nothing else does and it is of one of these types; else None."""
        readers = self.readers.get(name, [])
        if name in self.kept or len(readers) != 1 or id(readers[0]) in self.gone | self.instead.keys():
            return None
        return readers[0] if is_one_of(readers[0], *types) else None

    def array(self, name):
        return numpy_helper.to_array(self.constants[name])

    def fold_normalization(self, node):
        """Let the convolution `node` do the BatchNormalization behind it too."""
        behind = self.only_reader(node.output[0], "BatchNormalization")
        if behind is None or any(name not in self.constants for name in (*node.input[1:], *behind.input[1:]) if name):
            return
        if len(behind.output) > 1 or attribute(behind, "training_mode", 0):
            return
        scale, beta, mean, var = (self.array(name) for name in behind.input[1:])
        factor = scale / np.sqrt(var + np.asarray(attribute(behind, "epsilon", 1e-5), var.dtype))
        w = self.array(node.input[1])
        bias = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros_like(mean)
        name = behind.output[0]
        folded = {f"{name}/w": scaled_filters(w, factor, node), f"{name}/bias": (bias - mean) * factor + beta}
        for key, array in folded.items():
            self.constants[key] = numpy_helper.from_array(np.ascontiguousarray(array, w.dtype), key)
        self.proto.initializer.extend(self.constants[key] for key in folded)
        del node.input[1:]
        node.input.extend(folded)
        node.output[0] = name
        self.gone.add(id(behind))

    def fuse(self, node):
        """Put a FusedConv in the place of the last node that the Conv `node` can take in."""
        taken, residual, extra = [node], [], {}
        add = self.only_reader(node.output[0], "Add")
        if add is not None and self.may_be_alike(*add.input):
            taken.append(add)
            residual = [name for name in add.input if name != node.output[0]]
        activation = self.activation(taken[-1].output[0])
        if activation is not None:
            nodes, extra["activation"], extra["slope"] = activation
            taken += nodes
        if len(taken) == 1:
            return
        bias = node.input[2] if len(node.input) > 2 else ""
        inputs = [*node.input[:2], bias, *residual]
        new = helper.make_node(FUSED, inputs, taken[-1].output, name=node.name, domain=DOMAIN, **extra)
        new.attribute.extend(node.attribute)
        self.gone.update(map(id, taken[:-1]))
        self.instead[id(taken[-1])] = new

    def may_be_alike(self, first, second):
        """Whether nothing says that two values differ in shape; the kernels add only what lies as their result."""
        first, second = self.shapes.get(first, []), self.shapes.get(second, [])
        return not (first and second) or (
            len(first) == len(second) and all(a == b or None in (a, b) for a, b in zip(first, second, strict=True))
        )

    def activation(self, name):
        """(its nodes, what convlib calls it, its slope) of the activation that alone reads `name`; or None."""
        one = self.only_reader(name, "Relu", "LeakyRelu", "Clip")
        if one is None:
            return self.silu(name)
        if one.op_type == "Relu":
            return [one], "relu", 0.0
        if one.op_type == "LeakyRelu":
            return [one], "leaky_relu", attribute(one, "alpha", 0.01)
        return ([one], "relu6", 0.0) if self.limits(one) == [0.0, 6.0] else None

    def limits(self, clip):
        """A Clip's two limits: attributes before opset 11, inputs since; None for one that is not known."""
        limits = [attribute(clip, key, None) for key in ("min", "max")]
        for i, name in enumerate(clip.input[1:]):
            limits[i] = float(self.array(name)) if name in self.constants else None
        return limits

    def silu(self, name):
        """The Sigmoid of `name` and the Mul of both, if nothing else reads either."""
        readers = sorted(self.readers.get(name, []), key=lambda node: node.op_type)
        if name in self.kept or [node.op_type for node in readers] != ["Mul", "Sigmoid"]:
            return None
        product, sigmoid = readers
        return ([sigmoid, product], "silu", 0.0) if self.only_reader(sigmoid.output[0], "Mul") is product else None

    def finish(self):
        nodes = [self.instead.get(id(node), node) for node in self.nodes if id(node) not in self.gone]
        del self.proto.node[:]
        self.proto.node.extend(nodes)


def shapes_in(graph) -> dict[str, list]:
    """The shapes that are known of a graph's values; None for a size that is not."""
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    known = {
        name: [size.dim_value if size.HasField("dim_value") else None for size in dims] for name, dims in shapes.items()
    }
    return known | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def is_one_of(node, *types) -> bool:
    """Whether this is one of these operators of ONNX's own."""
    return node.domain in ("", "ai.onnx") and node.op_type in types


def scaled_filters(w, factor, node):
    """w times its filters' factors: of Conv (K, C / group, ...), of ConvTranspose (C, K / group, ...)."""
    if node.op_type == "Conv":
        return w * factor.reshape(-1, *[1] * (w.ndim - 1)).astype(w.dtype)
    group = attribute(node, "group", 1)
    grouped = w.reshape(group, -1, *w.shape[1:])
    return (grouped * factor.reshape(group, 1, -1, *[1] * (w.ndim - 2)).astype(w.dtype)).reshape(w.shape)


def attribute(node, name, default):
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def names_in_bodies(node) -> Iterator[str]:
    """What the nodes in the bodies of an If, a Loop or a Scan read, and what these give."""
    for one in node.attribute:
        bodies = [one.g] if one.type == AttributeProto.GRAPH else one.graphs
        for body in bodies:
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from inner.input
                yield from names_in_bodies(inner)
