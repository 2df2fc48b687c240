"""Changes to an OpenVINO network that leave what it computes as it is: around a crash, and for speed."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import trial


def spare_group_norms(net: Any) -> None:
    """Write group_norm(x) * f as group_norm(x) + group_norm(x) * (f - 1): OpenVINO 2026.4 fuses the first, and crashes.

    It does so in float32 where f differs between images: adaptive group norm.
    """
    ops = trial.openvino().opset13
    for node in net.get_ops():
        if node.get_type_name() != "Multiply":
            continue
        a, b = (port.get_source_output() for port in node.inputs())
        for x, factor in ((a, b), (b, a)):
            if x.get_node().get_type_name() == "GroupNormalization":
                more = ops.multiply(x, ops.subtract(factor, ops.constant(1.0, factor.get_element_type())))
                node.output(0).replace(ops.add(x, more).output(0))
                break


def convolve_before_upsampling(net: Any) -> None:
    """Write a 3x3 convolution of an image that was doubled by repetition as four 2x2 ones of the image itself.

    Of the three rows that such a convolution sees, two are the same: each of the four places in a doubled pixel has a
    kernel of 2x2 sums. That is 16 products in place of 36 (the sub-pixel convolution of Shi et al. 2016).
    """
    ops = trial.openvino().opset13
    for node in net.get_ops():
        if node.get_type_name() != "Convolution" or not _of_a_doubled_image(node):
            continue
        image = node.input(0).get_source_output().get_node().input(0).get_source_output()
        weight, places = node.input(1).get_source_output().get_node().data, []
        for down in (0, 1):
            for across in (0, 1):
                kernel = ops.constant(_summed(_summed(weight, down, 2), across, 3))
                before, after = [1 - down, 1 - across], [down, across]
                places.append(ops.convolution(image, kernel, [1, 1], before, after, [1, 1]))
        node.output(0).replace(ops.depth_to_space(ops.concat(places, 1), "blocks_first", 2).output(0))


def _of_a_doubled_image(convolution: Any) -> bool:
    """Whether it is 3x3, keeps the size, and sees what an interpolation of the nearest pixel made twice as large."""
    sizes, source = convolution.get_attributes(), convolution.input(0).get_source_output().get_node()
    kernel = convolution.input(1).get_source_output()
    if source.get_type_name() != "Interpolate" or kernel.get_node().get_type_name() != "Constant":
        return False
    how, factors = source.get_attributes(), source.input(1).get_source_output().get_node()
    return (
        tuple(kernel.get_shape()[2:]) == (3, 3)
        and all(list(sizes[name]) == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end"))
        and (how["mode"], how["shape_calculation_mode"]) == ("nearest", "scales")
        and (how["coordinate_transformation_mode"], how["nearest_mode"]) == ("asymmetric", "floor")
        and not any((*how["pads_begin"], *how["pads_end"]))
        and factors.get_type_name() == "Constant"
        and factors.data.tolist() == [2, 2]
    )


def _summed(weight: Any, second: int, axis: int) -> Any:
    """A kernel's three rows for the first or second of two equal rows: those that see the same one are summed."""
    a, b, c = np.moveaxis(weight, axis, 0)
    return np.stack([a + b, c] if second else [a, b + c], axis)
