"""Products in whole numbers of 8 bits, up to twice as fast as bfloat16 where a CPU multiplies them directly (VNNI).

A weight has one scale for each channel that it makes. An input is divided by its greatest magnitude, taken anew at each
call, for each image of a convolution and each token of a matrix product; the result is multiplied by it again. Both are
linear, so that nothing but the rounding differs, and nothing has to be calibrated: the scales follow the noise level.

Dynamic quantization by vectors: Dettmers et al., "LLM.int8()", 2022, sec. 2.1; here for convolutions too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import trial

LEAST = 1 << 16  # bytes of a weight that is worth it; those of first and last convolutions are less, and most delicate
UNITS = 127  # whole numbers from -127 to 127


def quantize(net: Any) -> None:
    """Let every large product of an OpenVINO network be one of whole numbers; biases and norms stay as they are.

    A product of few rows (the embedding of a noise level, a modulation) only gets its weight in 8 bits: reading that is
    all that it costs.
    """
    ops, shared = trial.openvino().opset13, {}
    for node in list(net.get_ops()):
        if not (axes := _channels(node)):
            continue
        weight = node.input(1).get_source_output().get_node().data
        scale = np.abs(weight).max(axes, keepdims=True) / UNITS
        scale[scale == 0] = 1
        whole = ops.convert(ops.constant(np.round(weight / scale).astype(np.int8)), np.float32)
        node.input(1).replace_source_output(ops.multiply(whole, ops.constant(scale)).output(0))
        if (over := _one_scale(node)) is None:
            continue
        source = node.input(0).get_source_output()
        key = (source.get_node().get_friendly_name(), source.get_index(), over)
        if key not in shared:
            shared[key] = _units(source, over)
        units, greatest = shared[key]
        node.input(0).replace_source_output(units.output(0))
        readers = list(node.output(0).get_target_inputs())
        result = ops.multiply(node.output(0), greatest)
        for reader in readers:
            reader.replace_source_output(result.output(0))


def _channels(node: Any) -> tuple[int, ...]:
    """Along which axes of its weight a product sums; none for what is no product with a large constant."""
    if node.get_type_name() not in ("MatMul", "Convolution"):
        return ()
    constant = node.input(1).get_source_output().get_node()
    if constant.get_type_name() != "Constant" or constant.get_element_type() != trial.openvino().Type.f32:
        return ()
    weight = constant.data
    if weight.ndim < 2 or weight.nbytes < LEAST:
        return ()
    if node.get_type_name() == "Convolution":
        return tuple(range(1, weight.ndim))
    return (weight.ndim - 1 if node.get_attributes()["transpose_b"] else weight.ndim - 2,)


def _one_scale(node: Any) -> tuple[int, ...] | None:
    """Over which axes the input shares one scale: those that the product sums over. None for a product of few rows."""
    rank = node.get_input_partial_shape(0).rank
    if rank.is_dynamic or rank.get_length() < 3 or node.get_attributes().get("transpose_a"):
        return None
    if node.get_type_name() == "MatMul":
        return (rank.get_length() - 1,)
    kernel = node.input(1).get_source_output().get_shape()[2:]
    return (1,) if set(kernel) == {1} else tuple(range(1, rank.get_length()))


def _units(source: Any, over: tuple[int, ...]) -> tuple[Any, Any]:
    """An input in units of its greatest magnitude, rounded; and that magnitude."""
    ops = trial.openvino().opset13
    greatest = ops.reduce_max(ops.abs(source), ops.constant(np.array(over, np.int64)), keep_dims=True)
    greatest = ops.maximum(greatest, ops.constant(np.float32(1e-12)))
    low, high = (ops.constant(np.float32(end)) for end in (-(UNITS + 1) / UNITS, 1))
    return ops.fake_quantize(ops.divide(source, greatest), low, high, low, high, 256), greatest
