# SPDX-License-Identifier: Apache-2.0
"""The PTX machine on what nvcc writes and Triton does not: several kernels, structs, scopes.

And on what neither writes today, which must be refused before it is computed as something else.
"""

import numpy as np
import pytest
from ptx_emulator.assembly import program, run
from ptx_emulator.machine import Machine
from ptx_emulator.memory import Buffer
from ptx_emulator.program import Program, PtxFault

STRUCT = """
.extern .shared .align 16 .b8 memory[];
.visible .entry other(.param .u32 other_param_0)
{
    ret;
}
.visible .entry k(.param .u32 k_param_0,
    .param .align 8 .b8 k_param_1[24])
.maxntid 32, 1, 1
{
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    mov.b64 %rd1, k_param_1;
    add.s64 %rd2, %rd1, 8;
    ld.param.u64 %rd3, [%rd2+8];
    ld.param.u32 %r1, [k_param_1+4];
    mov.u32 %r2, %tid.x;
    { .reg .b64 %place;
      mul.wide.u32 %place, %r2, 4; add.s64 %rd3, %rd3, %place; }
    cvta.shared.u64 %rd4, %rd1;
    cvta.to.shared.u64 %rd5, %rd4;
    st.shared.u32 [memory+128], %r1;
    bar.sync 0, 32;
    ld.shared.u32 %r3, [memory+128];
    {add.s32 %r3, %r3, %r2;}
    st.global.u32 [%rd3], %r3;
    ret;
}
"""


def test_a_kernel_of_several_takes_a_struct():
    out = np.zeros(32, np.uint32)
    buffer = Buffer("out", 4096, out.view(np.uint8))
    struct = np.array([7 << 32, 0, 4096], np.uint64).tobytes()
    machine = Machine()
    machine.launch(Program(STRUCT, "k"), [0, struct], [buffer], blocks=1, shared=256)
    assert (out == np.arange(32) + 7).all() and not machine.races
    with pytest.raises(PtxFault, match="no such kernel"):
        Program(STRUCT, "absent")


def test_what_is_not_known_is_refused():
    for body in ("foo.b32 %r1, %r2;", "add.f16 %rs1, %rs2, %rs3;", "mul.hi.u32 %r1, %r2, %r3;",
                 "mov.u32 %r1, %clock;", "bar.sync 1;", "bar.sync 0, 16;", "bar.arrive 0, 32;",
                 "ld.local.b32 %r1, [%rd1];", "cvt.rzi.s32.f32 %r1, %r2;",
                 "cvt.rz.f32.f64 %r1, %rd1;", "fma.rp.f32 %r1, %r2, %r3, %r4;",
                 "setp.lt.and.s32 %p1, %r1, %r2, %p2;", "setp.lt.ftz.f32 %p1, %r1, %r2;",
                 "add.rz.f32 %r1, %r2, %r3;", "add.sat.s32 %r1, %r2, %r3;",
                 "mul.sat.f32 %r1, %r2, %r3;", "mad.rn.f32 %r1, %r2, %r3, %r4;",
                 "fma.rn.relu.f32 %r1, %r2, %r3, %r4;", "div.approx.f32 %r1, %r2, %r3;",
                 "min.xorsign.abs.f32 %r1, %r2, %r3;", "sqrt.rz.f32 %r1, %r2;",
                 "redux.sync.max.abs.s32 %r1, %r2, -1;", "shf.l.wrap.b32 %r1, %r2, %r3, %r4;",
                 "bfe.s32 %r1, %r2, 1, 2;", "prmt.b32.f4e %r1, %r2, %r3, %r4;"):  # fmt: skip
        with pytest.raises(PtxFault, match="not known|unknown"):
            run(body)
    with pytest.raises(PtxFault, match="not understood"):
        program("$%&;", 0, 32)
