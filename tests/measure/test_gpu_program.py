"""Costs from the text of a program, on small programs whose costs are known."""

import pytest

from jaxcls.measure.gpu_program import gpu_cost
from jaxcls.measure.program_text import Cost

PROGRAM = """HloModule jit_step, entry_computation_layout={()->()}

%fused_dot (a: bf16[8,16], b: bf16[16,4]) -> f32[8,4] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_slice (x: f32[100,4], i: s32[]) -> f32[1,4] {
  %x = f32[100,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,4]{1,0} dynamic-slice(%x, %i, %zero), dynamic_slice_sizes={1,4}
}

%fused_update (y: f32[100,4], u: f32[1,4], j: s32[]) -> f32[100,4] {
  %y = f32[100,4]{1,0} parameter(0)
  %u = f32[1,4]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %update = f32[100,4]{1,0} dynamic-update-slice(%y, %u, %j, %none)
}

%fused_part (all: f32[100,4]) -> f32[2,4] {
  %all = f32[100,4]{1,0} parameter(0)
  ROOT %part = f32[2,4]{1,0} slice(%all), slice={[7:9], [0:4]}
}

%body (state: (s32[], f32[100,4])) -> (s32[], f32[100,4]) {
  %state = (s32[], f32[100,4]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %rows = f32[100,4]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,4]{1,0} fusion(%rows, %step), kind=kLoop, calls=%fused_slice
  %written = f32[100,4]{1,0} fusion(%rows, %row, %step), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[100,4]{1,0}) tuple(%step, %written)
}

%condition (state.1: (s32[], f32[100,4])) -> pred[] {
  %state.1 = (s32[], f32[100,4]{1,0}) parameter(0)
  %step.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%step.1, %step.1), direction=LT
}

%called (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  ROOT %copied = f32[10]{0} copy(%p)
}

ENTRY %main (x.1: bf16[8,16], w: bf16[16,4], v: f32[10], r: f32[100,4]) -> f32[8,4] {
  %x.1 = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %v = f32[10]{0} parameter(2)
  %r = f32[100,4]{1,0} parameter(3)
  BODY
  ROOT %result = f32[8,4]{1,0} bitcast(%x.1)
}
"""
SLICE, INDEX = 4 * 4, 4


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", Cost()),
        (
            "%d = f32[8,4]{1,0} fusion(%x.1, %w), kind=kCustom, calls=%fused_dot",
            Cost(moved=8 * 16 * 2 + 16 * 4 * 2 + 8 * 4 * 4, flops=2 * 8 * 16 * 4, kernels=1),
        ),
        (
            "%p = f32[2,4]{1,0} fusion(%r), kind=kLoop, calls=%fused_part",
            Cost(moved=2 * 2 * 4 * 4, kernels=1),
        ),
        (
            "%p = f32[2,4]{1,0} slice(%r), slice={[7:9], [0:4]}",
            Cost(moved=2 * 2 * 4 * 4, kernels=1),
        ),
        (
            "%m = (f32[8,4]{1,0}, s8[4194304]{0}) custom-call(%x.1, %w), "
            'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
            '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            Cost(moved=8 * 16 * 2 + 16 * 4 * 2 + 8 * 4 * 4, flops=2 * 8 * 16 * 4, kernels=1),
        ),
        (
            "%s = (f32[10]{0}, f32[10]{0}, u32[]) copy-start(%v)\n  %e = f32[10]{0} copy-done(%s)",
            Cost(moved=84, kernels=1),
        ),
        ("%c = f32[10]{0} call(%v), to_apply=%called", Cost(moved=80, kernels=1)),
        (
            "%t = (s32[], f32[100,4]{1,0}) while(%r), condition=%condition, body=%body, "
            'backend_config={"known_trip_count":{"n":"5"}}',
            Cost(moved=5 * (2 * SLICE + INDEX + 2 * SLICE + INDEX + 9), kernels=15),
        ),
        (
            "%t = (s32[], f32[100,4]{1,0}) while(%r), condition=%condition, body=%body",
            Cost(moved=2 * SLICE + INDEX + 2 * SLICE + INDEX + 9, kernels=3, unknown_loops=1),
        ),
        (
            "%many = (f32[10]{0}, f32[10]{0}, f32[10]{0}, f32[10]{0}, f32[10]{0}, /*index=5*/"
            'f32[10]{0}) custom-call(%v), custom_call_target="some"',
            Cost(moved=7 * 40, kernels=1),
        ),
        (
            "%i = bf16[2,8,8,4]{3,2,1,0} custom-call(%v)\n"
            "  %k = bf16[6,3,3,4]{3,2,1,0} custom-call(%v)\n"
            "  %o = (bf16[2,4,4,6]{3,2,1,0}, u8[0]{0}) custom-call(%i, %k), "
            "window={size=3x3 stride=2x2 pad=0_1x0_1}, dim_labels=b01f_o01i->b01f, "
            'custom_call_target="__cudnn$convForward"',
            Cost(
                moved=2 * 40 + 2 * 2 * 256 * 2 + 2 * 2 * 216 + 192 * 2,
                flops=2 * 2 * 4 * 4 * 6 * 3 * 3 * 4,
                kernels=3,
            ),
        ),
        (
            "%i = bf16[2,8,8,4]{3,2,1,0} custom-call(%v)\n"
            "  %g = bf16[2,4,4,6]{3,2,1,0} custom-call(%v)\n"
            "  %o = (bf16[6,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%i, %g), "
            "window={size=3x3 stride=2x2 pad=0_1x0_1}, dim_labels=b01f_o01i->b01f, "
            'custom_call_target="__cudnn$convBackwardFilter"',
            Cost(
                moved=2 * 40 + 2 * 2 * 256 * 2 + 2 * 2 * 192 + 216 * 2,
                flops=2 * 2 * 4 * 4 * 6 * 3 * 3 * 4,
                kernels=3,
            ),
        ),
    ],
)
def test_the_cost_of_a_program(body: str, expected: Cost) -> None:
    assert gpu_cost(PROGRAM.replace("BODY", body)) == expected


def test_of_branches_the_one_that_moves_most_counts() -> None:
    branches = "%c = f32[10]{0} conditional(%v, %v, %v), branch_computations={%called, %condition}"
    assert gpu_cost(PROGRAM.replace("BODY", branches)) == Cost(moved=80, kernels=1)
