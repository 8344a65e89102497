#!/usr/bin/env python3
"""Makes triton_softmax.ptx: the softmax of Triton's tutorial (02-fused-softmax), bf16 rows, for sm_90.

Needs triton 3.9.0 from PyPI; neither torch nor a GPU. Run beside the .ptx file:
    python3 -m pip install --no-deps --target /tmp/triton triton==3.9.0 && PYTHONPATH=/tmp/triton python3 triton_softmax.py
"""
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def softmax(output, logits, row_stride, rows, columns, BLOCK: tl.constexpr):
    """Rows in turn, one program each; columns up to BLOCK, the rest of the block masked out."""
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        offsets = tl.arange(0, BLOCK)
        mask = offsets < columns
        values = tl.load(logits + row * row_stride + offsets, mask=mask, other=-float("inf")).to(tl.float32)
        values = values - tl.max(values, axis=0)
        numerator = tl.exp(values)
        result = numerator / tl.sum(numerator, axis=0)
        tl.store(output + row * row_stride + offsets, result.to(tl.bfloat16), mask=mask)


assert triton.__version__ == "3.9.0", triton.__version__
signature = {"output": "*bf16", "logits": "*bf16", "row_stride": "i32", "rows": "i32", "columns": "i32", "BLOCK": "constexpr"}
# The launch promises pointers and a row stride that 16 divides: vector loads.
aligned = {(index,): [["tt.divisibility", 16]] for index in (0, 1, 2)}
source = ASTSource(fn=softmax, signature=signature, constexprs={"BLOCK": 1024}, attrs=aligned)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "ptx_version": 90})
Path(__file__).with_suffix(".ptx").write_text(compiled.asm["ptx"])
print(f"{compiled.metadata.shared} bytes of dynamic shared memory, {compiled.metadata.num_warps} warps")
