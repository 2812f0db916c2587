"""HBM traffic and cycles from the text of a program for a TPU, on lines whose traffic is known."""

import pytest

from jaxcls.measure.program_text import Cost
from jaxcls.measure.tpu_program import tpu_cost

BYTES = 8 * 128 * 2
IN_HBM = "bf16[8,128]{1,0:T(8,128)(2,1)}"
IN_VMEM = "bf16[8,128]{1,0:T(8,128)(2,1)S(1)}"
HALF_IN_VMEM = "bf16[4,128]{1,0:T(8,128)(2,1)S(1)}"
CONTEXT = "u32[]{:S(2)}"

PROGRAM = f"""HloModule jit_step, entry_computation_layout={{()->()}}

%from_hbm (a: bf16[8,128], b: bf16[8,128]) -> bf16[8,128] {{
  %a = {IN_HBM} parameter(0)
  %b = {IN_VMEM} parameter(1)
  ROOT %sum = {IN_VMEM} add(%a, %b)
}}

%body (state: bf16[8,128]) -> bf16[8,128] {{
  %state = {IN_HBM} parameter(0)
  ROOT %next = {IN_HBM} copy(%state), backend_config={{"estimated_cycles":"5"}}
}}

%condition (again: bf16[8,128]) -> pred[] {{
  %again = {IN_HBM} parameter(0)
  ROOT %yes = pred[] constant(true)
}}

ENTRY %main (x: bf16[8,128], y: bf16[8,128]) -> bf16[8,128] {{
  %x = {IN_HBM} parameter(0)
  %y = {IN_VMEM} parameter(1)
  BODY
}}
"""


@pytest.mark.parametrize(
    ("line", "moved", "cycles"),
    [
        (f'%z = {IN_HBM} negate(%x), backend_config={{"estimated_cycles":"70"}}', 2 * BYTES, 70),
        (f"%z = {IN_VMEM} negate(%y)", 0, 0),
        (f"%z = {IN_VMEM} fusion(%x, %y), kind=kLoop, calls=%from_hbm", BYTES, 0),
        # To the fast memory, and back: (destination, source, context).
        (f"%z = ({IN_VMEM}, {IN_HBM}, {CONTEXT}) copy-start(%x)", BYTES, 0),
        (f"%z = ({IN_HBM}, {IN_VMEM}, {CONTEXT}) copy-start(%y)", BYTES, 0),
        (f"%z = ({IN_VMEM}, {IN_VMEM}, {CONTEXT}) copy-start(%y)", 0, 0),
        (f"%z = {IN_VMEM} copy-done(%x)", 0, 0),
        # Of an array that is brought in parts, a part.
        (f"%z = (({IN_HBM}), {HALF_IN_VMEM}, {CONTEXT}) slice-start(%x)", BYTES // 2, 0),
        (f'%z = {IN_VMEM} custom-call(%y, %y), custom_call_target="ConcatBitcast"', 0, 0),
        # A Pallas kernel.
        (
            f'%z = ({IN_HBM}, {IN_HBM}) custom-call(%x, %y), custom_call_target="tpu_custom_call"',
            3 * BYTES,
            0,
        ),
        (
            f"%z = {IN_HBM} while(%x), condition=%condition, body=%body, "
            'backend_config={"known_trip_count":{"n":"3"}}',
            3 * 2 * BYTES,
            15,
        ),
    ],
)
def test_what_is_moved_from_and_to_hbm(line: str, moved: int, cycles: int) -> None:
    assert tpu_cost(PROGRAM.replace("BODY", line)) == Cost(moved=moved, cycles=cycles)
