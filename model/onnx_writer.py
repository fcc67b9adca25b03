"""One ONNX graph, written node by node: the weights go straight to a data file beside it, one at a time.

So a model of any size is written in the memory of its largest matrix. Linear layers are written as the precision says: ``fp32`` as
MatMul, ``int8`` and ``int4`` as MatMulNBits. That operator rounds activations too, to 8 bits with one scale for each block of a row,
so a position's answer does not depend on which others are computed with it; on whether it is alone it may, by rounding, for one row has a
kernel of its own (bench/NOTES.md). ONNX Runtime's dynamic quantisation
(DynamicQuantizeLinear) has one scale for a whole block of positions: as fast here, but what it says changes with the cutting of the
audio, and it was further from fp32 (bench/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from .graph_weights import Place

Precision = Literal["fp32", "int8", "int4"]
Array = NDArray[Any]
# Bits of a weight, weights for each scale. 8 bits hold 64 or 128 as well, but activations share the blocks, and one loud channel is the
# rounding of all others in its block (bench/NOTES.md).
BITS = {"int8": (8, 32), "int4": (4, 32)}
_ROWS = 4096  # quantised at a time: 12B's head alone is 4 GB in fp32
_OPSET = [("", 21), ("com.microsoft", 1)]
_IR_VERSION = 10
_PAGE = 4096  # weights begin on a page, so that a runtime may map them
_MICROSOFT = {"MatMulNBits", "QuickGelu", "RotaryEmbedding", "SkipSimplifiedLayerNormalization"}


def quantise(weight: Array, bits: int, block: int) -> tuple[Array, Array]:
    """[N, K] → uint8 [N, ceil(K / block), block * bits / 8] and scales [N * ceil(K / block)].

    Symmetric round 2^(bits - 1): the value of largest magnitude in a block becomes -2^(bits - 1). At 4 bits two values share a byte,
    the earlier one low (layout: ONNX Runtime's ContribOperators.md, MatMulNBits).
    """
    parts = [_quantise_rows(weight[first : first + _ROWS], bits, block) for first in range(0, len(weight), _ROWS)]
    return np.concatenate([values for values, _ in parts]), np.concatenate([scales for _, scales in parts])


def _quantise_rows(weight: Array, bits: int, block: int) -> tuple[Array, Array]:
    n, k = weight.shape
    half = 2 ** (bits - 1)
    blocks = np.pad(weight, ((0, 0), (0, -k % block))).reshape(n, -1, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    scales = np.where(largest == 0, 1.0, largest / -half).astype(np.float32)
    values = np.clip(np.rint(blocks / scales) + half, 0, 2 * half - 1).astype(np.uint8)
    return values if bits == 8 else values[..., 0::2] | (values[..., 1::2] << 4), scales.reshape(-1)


class GraphWriter:
    """``with GraphWriter(folder, name, precision) as g``: nodes by ``g.op``; at the end ``name.onnx`` and ``name.data`` are complete."""

    accuracy_level = 4  # of MatMulNBits: int8 activations

    def __init__(self, folder: Path, name: str, precision: Precision) -> None:
        self.path, self.precision = folder / f"{name}.onnx", precision
        self._data = (folder / f"{name}.data").open("wb")
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._tensors: list[TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}  # small constants, written once
        self._begins: dict[str, int] = {}  # of weights in the data file
        self.places: dict[str, Place] = {}  # of the matrices of linear layers, by the names they came with

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._data.close()
        if kind is None:
            self.path.write_bytes(self._model().SerializeToString())

    def _model(self) -> ModelProto:
        graph = helper.make_graph(self._nodes, self.path.stem, self._inputs, self._outputs, self._tensors)
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSET]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="dragoman")

    def input(self, name: str, kind: type[np.generic], *shape: int | str) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape))
        return name

    def output(self, name: str, source: str, kind: type[np.generic], *shape: int | str) -> None:
        self._nodes.append(helper.make_node("Identity", [source], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape))

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Append a node; returns the names of its outputs."""
        names = [f"{kind}_{len(self._nodes)}_{place}" for place in range(outputs)]
        domain = "com.microsoft" if kind in _MICROSOFT else ""
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A constant fp32 scalar."""
        return self.constant(np.array(value, dtype=np.float32))

    def constant(self, values: Array) -> str:
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self._tensors)}"
            self._tensors.append(numpy_helper.from_array(values, self._known[key]))
        return self._known[key]

    def weight(self, values: Array) -> str:
        """A constant in the data file."""
        self._data.write(bytes(-self._data.tell() % _PAGE))
        tensor = TensorProto(name=f"weight_{len(self._tensors)}", dims=values.shape)
        tensor.data_type, tensor.data_location = helper.np_dtype_to_tensor_dtype(values.dtype), TensorProto.EXTERNAL
        for key, value in (("location", f"{self.path.stem}.data"), ("offset", self._data.tell()), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._begins[tensor.name] = self._data.tell()
        np.ascontiguousarray(values).tofile(self._data)
        self._tensors.append(tensor)
        return tensor.name

    def linear(self, x: str, weight: Array, rows: Mapping[str, int] | None = None) -> str:
        """[..., K] times a torch weight [N, K] → [..., N], in the graph's precision. ``rows``: the matrices that ``weight`` is made of,
        from the top down, and how many rows each has; ``places`` then tells where they are."""
        n, k = weight.shape
        if self.precision == "fp32":
            stored = self.weight(weight.T)
            self._place(Place(f"{self.path.stem}.data", (n, k), 32, self._begins[stored], strides=(4, 4 * n)), rows or {})
            return self.op("MatMul", x, stored)
        bits, block = self.bits_and_block
        values, scales = (self.weight(part) for part in self.quantised(weight))
        place = Place(f"{self.path.stem}.data", (n, k), bits, self._begins[values], scales=self._begins[scales], block=block)
        self._place(place, rows or {})
        return self.op("MatMulNBits", x, values, scales, accuracy_level=self.accuracy_level, N=n, K=k, bits=bits, block_size=block)

    def _place(self, whole: Place, rows: Mapping[str, int]) -> None:
        first = 0
        for name, count in rows.items():
            self.places[name] = whole.rows(first, count)
            first += count

    @property
    def bits_and_block(self) -> tuple[int, int]:
        return BITS[self.precision]

    def quantised(self, weight: Array) -> tuple[Array, Array]:
        """Values and scales of a linear layer, as ``quantise`` has them; bench/full_size.py draws them instead."""
        return quantise(weight, *self.bits_and_block)

    def rms_norm(self, x: str, weight: Array, eps: float) -> str:
        """x / rms(x) * weight over the last axis; fp32 inside."""
        return self.op("SimplifiedLayerNormalization", x, self.constant(weight), axis=-1, epsilon=eps, stash_type=1)
