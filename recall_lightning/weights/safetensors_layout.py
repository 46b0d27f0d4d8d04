"""The format of a safetensors file: what it calls dtypes, and where tensors lie in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

SAFETENSORS_DTYPES: dict[str, torch.dtype] = {  # in the order in which safetensors sorts a file
    code: getattr(torch, name)
    for code, name in {
        "U64": "uint64",
        "I64": "int64",
        "F64": "float64",
        "C64": "complex64",
        "F32": "float32",
        "U32": "uint32",
        "I32": "int32",
        "BF16": "bfloat16",
        "F16": "float16",
        "U16": "uint16",
        "I16": "int16",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
    }.items()
    if hasattr(torch, name)
}
CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(SAFETENSORS_DTYPES.values())}
Plan = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie.

    Attributes:
        file: The file's name.
        offset: Of the first byte, from the file's start.
        dtype: What the bytes mean.
        shape: The tensor's.
    """

    file: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.count * self.dtype.itemsize


def layout(
    file: str, names: list[str], plan: Plan, metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Place]]:
    """Return a safetensors file's header and where its tensors lie, in the order they lie in.

    The format: eight bytes of the header's length, the header as JSON padded to a multiple of
    eight, the tensors' bytes without gaps. Wide dtypes come first, so all are aligned.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    ordered = sorted(names, key=lambda name: (_RANKS[plan[name][0]], name))
    starts = {}
    end = 0
    for name in ordered:
        dtype, shape = plan[name]
        starts[name] = end
        end += nbytes_of(dtype, shape)
        offsets = [starts[name], end]
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    encoded = len(text).to_bytes(8, "little") + text
    return encoded, {
        name: Place(file, len(encoded) + starts[name], plan[name][0], tuple(plan[name][1]))
        for name in ordered
    }


def nbytes_of(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor."""
    return dtype.itemsize * torch.Size(shape).numel()
