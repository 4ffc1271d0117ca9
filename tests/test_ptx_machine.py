# SPDX-License-Identifier: Apache-2.0
"""The PTX machine: memory, branches, exchanges of warps, and what it finds fault with."""

import numpy as np
import pytest
from ptx_emulator.assembly import run
from ptx_emulator.program import PtxFault

LANE = np.arange(32)
# Addresses of a thread's own element of four bytes, in the first two arrays and in shared memory.
OWN = """
    mul.wide.u32 %rd1, %r100, 4;
    add.s64 %rd2, %rd1, %rd100;
    add.s64 %rd3, %rd1, %rd101;
    shl.b32 %r1, %r100, 2;
    mov.b32 %r2, global_smem;
    add.s32 %r1, %r1, %r2;
"""
PUT = OWN + "ld.global.b32 %r3, [%rd2]; st.shared.b32 [%r1], %r3;"
# The element of the thread that is %r4 further, round a block of 64 threads.
NEXT = """
    add.s32 %r5, %r100, {distance}; and.b32 %r5, %r5, 63; shl.b32 %r5, %r5, 2;
    ld.shared.b32 %r6, [%r5]; st.global.b32 [%rd3], %r6;
"""


def words(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


def kinds(machine) -> list[tuple[str, str]]:
    """Returns (memory, kind) of the races that a machine found."""
    return [(race.memory, race.kind) for race in machine.races.values()]


def test_wide_accesses_move_neighbouring_numbers():
    x, out = words(128), np.zeros(128, np.uint32)
    body = """
        mul.wide.u32 %rd1, %r100, 16; add.s64 %rd2, %rd1, %rd100; add.s64 %rd3, %rd1, %rd101;
        ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd2]; ld.global.v2.b16 {%rs1, %rs2}, [%rd2+4];
        shl.b32 %r5, %r100, 4; st.shared.v4.b32 [%r5], {%r4, %r3, %r2, %r1};
        ld.shared.v2.b32 {%r6, %r7}, [%r5+8]; ld.shared.b8 %rs3, [%r5+3];
        st.global.v2.b32 [%rd3], {%r6, %r7}; mov.b32 %r8, {%rs2, %rs1};
        cvt.u32.u16 %r9, %rs3; st.global.v2.b32 [%rd3+8], {%r8, %r9};
    """
    run(body, x, out, shared=512)
    x, out = x.reshape(32, 4), out.reshape(32, 4)
    assert (out[:, :2] == x[:, 1::-1]).all()
    assert (out[:, 2] == (x[:, 1] >> 16 | x[:, 1] << 16)).all() and (
        out[:, 3] == x[:, 3] >> 24
    ).all()


def test_threads_loop_as_often_as_each_must():
    times, out = np.arange(64, dtype=np.uint32) * 7 % 13, np.zeros(64, np.uint32)
    body = (
        OWN
        + """
        ld.global.b32 %r3, [%rd2]; mov.b32 %r4, 0; mov.b32 %r5, 0;
    $L_top:
        setp.eq.s32 %p1, %r5, %r3;
        @%p1 bra $L_end;
        add.s32 %r5, %r5, 1; add.s32 %r4, %r4, %r5;
        bra.uni $L_top;
    $L_end:
        setp.lt.s32 %p2, %r100, 32;
        @!%p2 st.global.b32 [%rd3], %r4;
        @!%p2 ret;
        neg.s32 %r4, %r4;
        st.global.b32 [%rd3], %r4;
    """
    )
    run(body, times, out, threads=64)
    sums = (times * (times + 1) // 2).astype(np.uint32)
    assert (out[:32] == -sums[:32]).all() and (out[32:] == sums[32:]).all()


SHUFFLES = {
    "bfly.b32 %r4, %r3, 5, 31, -1": LANE ^ 5,
    "up.b32 %r4, %r3, 3, 0, -1": np.where(LANE < 3, LANE, LANE - 3),
    "down.b32 %r4, %r3, 3, 31, -1": np.where(LANE > 28, LANE, LANE + 3),
    "idx.b32 %r4, %r3, 9, 31, -1": np.full(32, 9),
    "idx.b32 %r4, %r3, 41, 31, -1": np.full(32, 9),  # of a distance five bits count
    "up.b32 %r4, %r3, 35, 0, -1": np.where(LANE < 3, LANE, LANE - 3),
    "idx.b32 %r4, %r3, %r100, 31, -1": LANE,
    "bfly.b32 %r4, %r3, %r100, 31, -1": 0 * LANE,
    "up.b32 %r4, %r3, 1, 6144, -1": np.where(LANE % 8 == 0, LANE, LANE - 1),  # segments of 8
}


@pytest.mark.parametrize("text", SHUFFLES)
def test_a_shuffle_takes_another_lanes_number(text):
    x, out = words(64), np.zeros(64, np.uint32)
    body = f"{OWN} ld.global.b32 %r3, [%rd2]; shfl.sync.{text}; st.global.b32 [%rd3], %r4;"
    run(body, x, out, threads=64)
    assert (out.reshape(2, 32) == x.reshape(2, 32)[:, SHUFFLES[text]]).all()


@pytest.mark.parametrize("what,of", (("add", np.sum), ("max", np.max), ("min", np.min)))
def test_a_reduction_is_that_of_its_warp(what, of):
    x, out = words(64).view(np.int32), np.zeros(64, np.int32)
    body = f"{OWN} ld.global.b32 %r3, [%rd2]; redux.sync.{what}.s32 %r4, %r3, -1;"
    run(body + "st.global.b32 [%rd3], %r4;", x, out, threads=64)
    want = of(x.reshape(2, 32), axis=1, keepdims=True).astype(np.int32)
    assert (out.reshape(2, 32) == want).all()


@pytest.mark.parametrize("trans", ("", ".trans"))
def test_matrices_are_spread_over_a_warp(trans):
    x, out = words(128), np.zeros(128, np.uint32)
    where = "mul.wide.u32 %rd1, %r100, 16; add.s64 %rd2, %rd1, %rd100; add.s64 %rd3, %rd1, %rd101;"
    row = "shl.b32 %r5, %r100, 4;"
    spread = f"x4{trans}.shared.b16"
    body = f"""{where} {row} ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd2];
        st.shared.v4.b32 [%r5], {{%r1, %r2, %r3, %r4}}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.{spread} {{%r6, %r7, %r8, %r9}}, [%r5];
        st.global.v4.b32 [%rd3], {{%r6, %r7, %r8, %r9}};"""
    assert not run(body, x, out, shared=512).races
    halves = x.view(np.uint16).reshape(4, 8, 8)  # matrix, row, column
    halves = halves.swapaxes(1, 2) if trans else halves
    got = out.view(np.uint16).reshape(8, 4, 4, 2)  # row, pair of columns, matrix, half
    assert (got.transpose(2, 0, 1, 3).reshape(4, 8, 8) == halves).all()
    body = f"""{where} {row} ld.global.v4.b32 {{%r6, %r7, %r8, %r9}}, [%rd3];
        stmatrix.sync.aligned.m8n8.{spread} [%r5], {{%r6, %r7, %r8, %r9}}; bar.warp.sync -1;
        ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [%r5];
        st.global.v4.b32 [%rd2], {{%r1, %r2, %r3, %r4}};"""
    back = np.zeros(128, np.uint32)
    run(body, back, out, shared=512)
    assert (back == x).all()


COPY = (
    OWN
    + """
    setp.lt.s32 %p1, %r100, 60; selp.b32 %r7, 4, 0, %p1;
    cp.async.ca.shared.global [%r1], [%rd2], 0x4, %r7;
    cp.async.commit_group;
"""
)


def test_a_copy_has_arrived_when_its_thread_has_waited():
    x, out = words(64), np.zeros(64, np.uint32)
    read = "ld.shared.b32 %r3, [%r1]; st.global.b32 [%rd3], %r3;"
    assert not run(f"{COPY} cp.async.wait_group 0; {read}", x, out, threads=64, shared=256).races
    assert (out[:60] == x[:60]).all() and (out[60:] == 0).all()
    with pytest.raises(PtxFault, match="nobody wrote"):  # one group may be on its way
        run(f"{COPY} cp.async.wait_group 1; {read}", x, out, threads=64, shared=256)
    early = f"st.shared.b32 [%r1], 0; {COPY} {read}"
    machine = run(OWN + early, x, out, threads=64, shared=256)
    assert kinds(machine) == [("shared", "read of a copy on its way")]
    others = COPY + "cp.async.wait_group 0;" + NEXT.format(distance=1)
    machine = run(others, x, out, threads=64, shared=256)
    assert kinds(machine) == [("shared", "read after write")]
    over = COPY + "add.s64 %rd4, %rd2, 0; st.global.b32 [%rd2], 7; cp.async.wait_group 0;" + read
    copied = x.copy()
    run(over, copied, out, threads=64, shared=256)
    assert (out[:60] == 7).all()  # what is overwritten too early is what arrives


@pytest.mark.parametrize("distance", (1, 32))
def test_threads_of_a_block_meet_at_a_barrier(distance):
    x, out = words(64), np.zeros(64, np.uint32)
    body = f"{PUT} bar.sync 0; {NEXT.format(distance=distance)}"
    assert not run(body, x, out, threads=64, shared=256).races
    assert (out == np.roll(x, -distance)).all()
    unordered = run(body.replace("bar.sync 0;", ""), x, out, threads=64, shared=256)
    assert kinds(unordered) == [("shared", "read after write")]
    within = run(body.replace("bar.sync 0;", "bar.warp.sync -1;"), x, out, threads=64, shared=256)
    # A barrier of the warp orders the neighbours, but for those at the ends of warps.
    assert kinds(within) == [("shared", "read after write")]


def test_a_barrier_of_the_warp_orders_its_threads():
    x, out = words(64), np.zeros(64, np.uint32)
    swap = "xor.b32 %r5, %r1, 4; ld.shared.b32 %r6, [%r5]; st.global.b32 [%rd3], %r6;"
    assert not run(f"{PUT} bar.warp.sync -1; {swap}", x, out, threads=64, shared=256).races
    assert (out.reshape(32, 2) == x.reshape(32, 2)[:, ::-1]).all()
    assert kinds(run(PUT + swap, x, out, threads=64, shared=256)) == [
        ("shared", "read after write")
    ]


@pytest.mark.parametrize("barriers", range(3))
def test_each_barrier_between_reads_and_writes_is_needed(barriers):
    x, out = words(64), np.zeros(64, np.uint32)
    body = [PUT, NEXT.format(distance=3), "st.shared.b32 [%r1], %r100;", NEXT.format(distance=5)]
    text = ""
    for k, part in enumerate(body):
        text += part + ("bar.sync 0;" if k != barriers else "")
    kind = "write after read" if barriers == 1 else "read after write"
    assert ("shared", kind) in kinds(run(text, x, out, threads=64, shared=256))
    assert not run("bar.sync 0;".join(body), x, out, threads=64, shared=256).races


def test_readers_of_several_warps_are_remembered():
    """Warp 1 writes what warp 0 read: that it has read it too, and later, changes nothing."""
    x, out = words(64), np.zeros(64, np.uint32)
    body = (
        OWN
        + """
        st.shared.b32 [%r1], %r100; bar.sync 0; ld.shared.b32 %r3, [%r2];
        setp.eq.s32 %p1, %r100, 63; @%p1 st.shared.b32 [%r2], 5;
    """
    )
    assert kinds(run(body, x, out, threads=64, shared=256)) == [("shared", "write after read")]


def test_one_value_written_by_several_threads_is_no_race():
    out, same = np.zeros(4, np.uint32), "st.global.b32 [%rd100], 7;"
    assert not run(same, out, threads=64, blocks=2).races
    apart = "st.global.b32 [%rd100], %r100;"
    assert ("array0", "two values in one instruction") in kinds(run(apart, out, threads=64))


def test_nothing_orders_two_blocks():
    x, out = words(64), np.zeros(64, np.uint32)
    body = "mov.u32 %r7, %ctaid.x; ld.global.b32 %r3, [%rd100]; bar.sync 0; {}"
    write = "setp.eq.s32 %p1, %r7, {}; @%p1 st.global.b32 [%rd100], 5;"
    for block in (0, 1):
        machine = run(body.format(write.format(block)), x, out, threads=64, blocks=2)
        assert kinds(machine) == [("array0", "write after read")]
    own = OWN + "st.global.b32 [%rd2], %r100; bar.sync 0; ld.global.b32 %r3, [%rd2];"
    assert not run(own, x, out, threads=64).races


FAULTS = {
    "misaligned access of 8 bytes": "ld.global.b64 %rd1, [%rd100+4];",
    "misaligned access of 16 bytes": "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd100+8];",
    r"out of bounds: 4 bytes at array0\+256": "ld.global.b32 %r1, [%rd100+256];",
    "out of bounds: 8 bytes at 0xfff8": "ld.global.b64 %rd1, [%rd100+-8];",
    "out of bounds: 4 bytes at shared": "st.shared.b32 [%r99+256], 1;",
    r"reads array1\+0, which nobody wrote": "ld.global.b32 %r1, [%rd101];",
    "reads shared.*, which nobody wrote": "ld.shared.b32 %r1, [%r99];",
    "some threads never reach": "setp.lt.s32 %p1, %r100, 40; @%p1 bar.sync 0;",
    "part of one": "setp.lt.s32 %p1, %r100, 40; @%p1 redux.sync.add.s32 %r1, %r100, -1;",
    "part of one.*": "setp.lt.s32 %p1, %r100, 40; @%p1 bar.warp.sync -1;",
    "out of bounds: 4 bytes at shared.*": (
        "cvta.to.shared.u64 %rd1, %rd100; st.shared.b32 [%rd1], 1;"
    ),
    "single bytes": "st.global.b8 [%rd100], %r100;",
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_raised(message):
    body = "mov.b32 %r99, 0;" + FAULTS[message]
    with pytest.raises(PtxFault, match=message):
        run(body, words(64), words(64), threads=64, shared=256, fresh=[1])


def test_what_a_kernel_has_written_may_be_read():
    out = np.zeros(64, np.uint32)
    run(OWN + "st.global.b32 [%rd3], 1; ld.global.b32 %r3, [%rd3];", words(64), out, threads=64,
        shared=256, fresh=[1])  # fmt: skip
    assert (out == 1).all()


def test_sectors_are_counted_for_each_request_of_a_warp():
    x, out = words(1024), np.zeros(64, np.uint32)
    dense = run(OWN + "ld.global.b32 %r3, [%rd2];", x, out, threads=64).traffic["k"]
    assert (dense.requests, dense.sectors, dense.used) == (2, 8, 1.0)
    strided = "mul.wide.u32 %rd1, %r100, 32; add.s64 %rd2, %rd1, %rd100; ld.global.b32 %r3, [%rd2];"
    apart = run(strided, x, out, threads=64).traffic["k"]
    assert (apart.requests, apart.sectors, apart.used) == (2, 64, 1 / 8)
    one = run("ld.global.b32 %r3, [%rd100];", x, out, threads=64).traffic["k"]
    assert (one.requests, one.sectors, one.used) == (2, 2, 1 / 8)
