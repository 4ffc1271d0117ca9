# SPDX-License-Identifier: Apache-2.0
"""The PTX machine: each instruction against Python's own numbers, and memory against NumPy."""

import doctest
import importlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx_emulator.assembly import apply, dtype_of, elementwise, run

COUNT = 64
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 3e38, 0.5, -2.5]
MODULES = (
    "values program shadow memory tensors machine arithmetic conversions transfers exchanges"
).split()


def numbers(kind: str, seed: int) -> np.ndarray:
    """Returns numbers of a PTX type: of all sizes, and the special ones of floats."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(dtype_of(kind))
    if dtype.kind == "f":
        x = (random.standard_normal(COUNT) * 10.0 ** random.integers(-5, 5, COUNT)).astype(dtype)
        x[:: COUNT // 12][:12] = np.roll(SPECIAL, seed)
        return x
    x = random.integers(0, 256, (COUNT, dtype.itemsize), dtype=np.uint8).view(dtype)[:, 0]
    x[::3] = (x[::3] & 7).astype(dtype)  # small ones, too
    return x


def same(got: np.ndarray, want: np.ndarray) -> bool:
    """Returns whether two arrays have the same bits, any NaN for NaN."""
    if got.dtype.kind == "f":
        return bool(((got == want) | (np.isnan(got) & np.isnan(want))).all())
    return bool((got == want).all())


def extreme(choose):
    """Returns min or max of two floats that drops one NaN."""
    return lambda a, b: b if a != a else a if b != b else choose(a, b)


def spreading(choose):
    return lambda a, b: math.nan if a != a or b != b else choose(a, b)


def divided(a, b):
    if b == 0 or math.isinf(a) or math.isnan(a) or math.isnan(b):
        with np.errstate(all="ignore"):
            return float(np.float64(a) / np.float64(b))
    return a / b


def fused(a, b, c):
    """Returns a·b + c, rounded once."""
    if not all(map(math.isfinite, (a, b, c))) or a * b + c == 0:
        return a * b + c
    return float(Fraction(a) * Fraction(b) + Fraction(c))


def power(x):
    return math.inf if x > 1024 else 0.0 if x < -1100 else 2.0**x


def truncated(a, b):
    return a if b == 0 else int(Fraction(a, b))


def arithmetic_right(x, n):
    return x >> min(n, 63)


FLOATS = [
    ("add.{}", 2, lambda a, b: a + b),
    ("sub.{}", 2, lambda a, b: a - b),
    ("mul.{}", 2, lambda a, b: a * b),
    ("div.rn.{}", 2, divided),
    ("fma.rn.{}", 3, fused),
    ("neg.{}", 1, lambda a: -a),
    ("abs.{}", 1, abs),
    ("min.{}", 2, extreme(min)),
    ("max.{}", 2, extreme(max)),
]
INTEGERS = [
    ("add.s{}", 2, lambda a, b: a + b),
    ("sub.s{}", 2, lambda a, b: a - b),
    ("mul.lo.s{}", 2, lambda a, b: a * b),
    ("mad.lo.s{}", 3, lambda a, b, c: a * b + c),
    ("min.s{}", 2, min),
    ("max.u{}", 2, max),
    ("neg.s{}", 1, lambda a: -a),
    ("abs.s{}", 1, abs),
    ("and.b{}", 2, lambda a, b: a & b),
    ("or.b{}", 2, lambda a, b: a | b),
    ("xor.b{}", 2, lambda a, b: a ^ b),
    ("not.b{}", 1, lambda a: ~a),
]
ARITHMETIC = [
    *((name.format(k), k, [k] * n, f) for name, n, f in FLOATS for k in ("f32", "f64")),
    *((name.format(w), f"{name[-3]}{w}", [f"{name[-3]}{w}"] * n, f)
      for name, n, f in INTEGERS for w in (16, 32, 64)),
    ("max.NaN.f32", "f32", ["f32"] * 2, spreading(max)),
    ("min.NaN.f32", "f32", ["f32"] * 2, spreading(min)),
    ("copysign.f32", "f32", ["f32"] * 2, lambda a, b: math.copysign(b, a)),
    ("shf.r.wrap.b32", "u32", ["u32"] * 3, lambda a, b, n: (b << 32 | a) >> n % 32),
    ("div.full.f32", "f32", ["f32"] * 2, divided),
    ("div.s64", "s64", ["s64"] * 2, truncated),
    ("div.u32", "u32", ["u32"] * 2, truncated),
    ("mul.wide.s32", "s64", ["s32"] * 2, lambda a, b: a * b),
    ("mul.wide.u32", "u64", ["u32"] * 2, lambda a, b: a * b),
    ("mad.wide.u32", "u64", ["u32", "u32", "u64"], lambda a, b, c: a * b + c),
    ("shl.b32", "b32", ["b32", "u32"], lambda a, n: a << n if n < 32 else 0),
    ("shl.b64", "b64", ["b64", "u32"], lambda a, n: a << n if n < 64 else 0),
    ("shr.u32", "u32", ["u32", "u32"], lambda a, n: a >> n),
    ("shr.s32", "s32", ["s32", "u32"], arithmetic_right),
    ("shr.s64", "s64", ["s64", "u32"], arithmetic_right),
    ("popc.b32", "u32", ["b32"], lambda a: bin(a).count("1")),
    ("ex2.approx.f32", "f32", ["f32"], power),
    ("lg2.approx.f32", "f32", ["f32"],
     lambda x: math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan),
    ("rcp.approx.f32", "f32", ["f32"], lambda x: divided(1.0, x)),
    ("sqrt.approx.f32", "f32", ["f32"], lambda x: math.nan if x < 0 else math.sqrt(x)),
    ("rsqrt.approx.f32", "f32", ["f32"],
     lambda x: math.nan if x < 0 else divided(1.0, math.copysign(math.sqrt(abs(x)), x))),
]  # fmt: skip


@pytest.mark.parametrize("name,result,kinds,function", ARITHMETIC, ids=[x[0] for x in ARITHMETIC])
def test_arithmetic_is_that_of_python(name, result, kinds, function):
    arrays = [numbers(kind, seed) for seed, kind in enumerate(kinds)]
    places = ", ".join(f"{{{n}}}" for n in range(len(kinds) + 1))
    got = apply(f"{name} {places};", result, list(zip(kinds, arrays)))
    with np.errstate(all="ignore"):
        assert same(got, elementwise(function, dtype_of(result), *arrays))


def test_flushing_makes_numbers_that_are_not_normal_zero():
    x = np.tile(np.float32([1e-40, -1e-40, 1.5e-38, 4.0]), 8)
    for name, want in (("mul.ftz.f32", [0, -0.0, 0, 2]), ("mul.f32", x[:4] / 2)):
        got = apply(f"{name} {{0}}, {{1}}, 0f3F000000;", "f32", [("f32", x)])
        assert same(got[:4].view(np.uint32), np.float32(want).view(np.uint32))


def test_a_fused_product_can_be_rounded_down():
    a, b, c = (numbers("f32", seed) for seed in (1, 2, 3))
    operands = [("f32", x) for x in (a, b, c)]
    near, below = (
        apply(f"fma.{how}.f32 {{0}}, {{1}}, {{2}}, {{3}};", "f32", operands) for how in ("rn", "rm")
    )
    for x, y, *row in zip(near.tolist(), below.tolist(), a.tolist(), b.tolist(), c.tolist()):
        if all(map(math.isfinite, (x, *row))):
            exact = Fraction(row[0]) * Fraction(row[1]) + Fraction(row[2])
            after = float(np.nextafter(np.float32(y), np.float32(np.inf)))
            assert Fraction(y) <= exact < Fraction(after) and x in (y, after)


@pytest.mark.parametrize("kind,dtype", (("bf16", torch.bfloat16), ("f16", torch.float16)))
def test_the_larger_of_pairs_spreads_a_nan(kind, dtype):
    a, b = (torch.from_numpy(numbers("f32", seed)).to(dtype) for seed in (1, 2))
    words = [("u32", x.view(torch.int32).numpy().view(np.uint32)) for x in (a, b)]
    got = apply(f"max.NaN.{kind}x2 {{0}}, {{1}}, {{2}};", "u32", words)
    want = torch.maximum(a, b)
    got = torch.from_numpy(got.view(np.int32)).view(dtype)
    assert same(got.float().numpy(), want.float().numpy()) and want.isnan().any()


def test_bits_are_extracted_inserted_and_permuted():
    x = numbers("u32", 1)
    got = apply("bfe.u32 {0}, {1}, 5, 7;", "u32", [("u32", x)])
    assert same(got, x >> 5 & 127)
    got = apply("bfi.b32 {0}, {1}, 0xFFFFFFFF, 5, 7;", "b32", [("b32", x)])
    assert same(got, (x << 5 & 127 << 5 | ~np.uint32(127 << 5)).astype(np.uint32))
    got = apply("prmt.b32 {0}, {1}, {1}, 0x0123;", "b32", [("b32", x)])
    assert same(got, x.byteswap())
    got = apply("prmt.b32 {0}, {1}, {1}, 0x8BA0;", "b32", [("b32", x)])  # signs of bytes 0, 3, 2
    signs = (x[:, None] >> np.uint32([7, 31, 23]) & 1) * np.uint32(255)
    assert same(got, x & 255 | signs[:, 2] << 8 | signs[:, 1] << 16 | signs[:, 0] << 24)
    # Of the places and numbers of bits only the lowest byte counts.
    got = apply("bfe.u32 {0}, {1}, 0x105, 0x207;", "u32", [("u32", x)])
    assert same(got, x >> 5 & 127)
    got = apply("bfi.b32 {0}, {1}, 0, 0x105, 0x207;", "b32", [("b32", x)])
    assert same(got, x << 5 & 127 << 5)


@pytest.mark.parametrize("name,zero", (("min", -0.0), ("min.NaN", -0.0), ("max", 0.0)))
def test_a_zero_below_0_is_the_smaller_one(name, zero):
    a, b = np.float32([0.0, -0.0] * 16), np.float32([-0.0, 0.0] * 16)
    got = apply(f"{name}.f32 {{0}}, {{1}}, {{2}};", "f32", [("f32", a), ("f32", b)])
    assert same(got.view(np.uint32), np.full(32, zero, np.float32).view(np.uint32))


def test_the_sign_of_a_small_number_is_spread_over_its_register():
    x = numbers("s32", 1)
    got = apply("cvt.s8.s32 {0}, {1};", "s16", [("s32", x)])
    assert same(got, x.astype(np.int8).astype(np.int16)) and (got < 0).any()
    out = np.zeros(COUNT, np.int32)
    for kind in ("s", "u"):
        run(f"""shl.b32 %r1, %r100, 2; cvt.u64.u32 %rd1, %r1; add.s64 %rd2, %rd1, %rd100;
                add.s64 %rd3, %rd1, %rd101; ld.global.{kind}8 %r2, [%rd2+1];
                st.global.b32 [%rd3], %r2;""", x, out, threads=COUNT)  # fmt: skip
        assert same(out, x.view(np.dtype(f"{kind.replace('s', 'i')}1"))[1::4].astype(np.int32))


COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("kind", ("s32", "u64", "f32", "b16"))
@pytest.mark.parametrize("test", COMPARED)
def test_comparisons_are_those_of_python(test, kind):
    a, b = numbers(kind, 1), numbers(kind, 4)
    b[::4] = a[::4]
    got = apply(f"setp.{test}.{kind} {{0}}, {{1}}, {{2}};", "pred", [(kind, a), (kind, b)])
    want = eval(f"a {COMPARED[test]} b")
    ordered = (a == a) & (b == b)
    assert same(got, (want & ordered).astype(np.uint32))
    if kind == "f32":  # also true where either is NaN
        got = apply(f"setp.{test}u.f32 {{0}}, {{1}}, {{2}};", "pred", [(kind, a), (kind, b)])
        assert same(got, (want | ~ordered).astype(np.uint32))


def test_numbers_and_nan_are_told_apart():
    a, b = numbers("f32", 1), numbers("f32", 4)
    want = np.isnan(a) | np.isnan(b)
    for test, holds in (("nan", want), ("num", ~want)):
        got = apply(f"setp.{test}.f32 {{0}}, {{1}}, {{2}};", "pred", [("f32", a), ("f32", b)])
        assert same(got, holds.astype(np.uint32))


def test_a_predicate_chooses_and_combines():
    a, b = numbers("s32", 1), numbers("s32", 2)
    text = """setp.lt.s32 %p1, {1}, {2}; setp.gt.s32 %p2|%p3, {1}, 0; and.pred %p4, %p1, %p2;
              or.pred %p5, %p4, %p3; not.pred %p6, %p5; selp.b32 {0}, {1}, {2}, %p6;"""
    got = apply(text, "s32", [("s32", a), ("s32", b)])
    assert same(got, np.where(((a < b) & (a > 0)) | (a <= 0), b, a))


CONVERSIONS = [("s64", "s32"), ("u64", "u32"), ("u32", "u64"), ("u16", "u32"), ("u32", "u16"),
               ("u64", "u16"), ("rn.f32", "s32"), ("rn.f32", "u32"), ("rn.f64", "u32"),
               ("f64", "f32"), ("rn.f32", "f64")]  # fmt: skip


@pytest.mark.parametrize("target,source", CONVERSIONS, ids=str)
def test_conversions_are_those_of_numpy(target, source):
    x, result = numbers(source, 3), target.removeprefix("rn.")
    got = apply(f"cvt.{target}.{source} {{0}}, {{1}};", result, [(source, x)])
    with np.errstate(all="ignore"):
        assert same(got, x.astype(dtype_of(result)))


def test_numbers_are_cut_to_one_and_rounded_to_integers():
    x = numbers("f32", 3)
    got = apply("cvt.sat.f32.f32 {0}, {1};", "f32", [("f32", x)])
    assert same(got, np.nan_to_num(np.clip(x, 0, 1)).astype(np.float32))
    assert same(apply("cvt.rni.f32.f32 {0}, {1};", "f32", [("f32", x)]), np.rint(x))


@pytest.mark.parametrize("kind,dtype", (("bf16", torch.bfloat16), ("f16", torch.float16)))
def test_sixteen_bits_are_rounded_and_widened_as_torch_does(kind, dtype):
    x = numbers("f32", 5)
    want = torch.from_numpy(x).to(dtype)
    bits = want.view(torch.int16).numpy().view(np.uint16)
    got = apply(f"cvt.rn.{kind}.f32 {{0}}, {{1}};", "u16", [("f32", x)])
    nan = np.isnan(x)
    assert same(got[~nan], bits[~nan]) and same(got[nan], np.full(nan.sum(), 0x7FFF, "u2"))
    wide = apply(f"cvt.f32.{kind} {{0}}, {{1}};", "f32", [("u16", got)])
    assert same(wide, want.float().numpy())
    operands = [("f32", x), ("f32", x[::-1].copy())]
    pair = apply(f"cvt.rn.{kind}x2.f32 {{0}}, {{1}}, {{2}};", "u32", operands)
    assert same(pair, got.astype(np.uint32) * 65536 + got[::-1])
    text = f"""setp.eq.{kind}x2 %p1|%p2, {{1}}, {{2}}; selp.b32 %r9, 2, 0, %p1;
               selp.b32 %r8, 1, 0, %p2; or.b32 {{0}}, %r8, %r9;"""
    equal = apply(text, "u32", [("u32", pair), ("u32", pair)])
    assert same(equal, (2 * ~nan[::-1] + ~nan).astype(np.uint32))


def test_registers_are_taken_apart_and_put_together():
    x = numbers("u64", 2)
    text = "mov.b64 {{%r8, %r9}}, {1}; mov.b64 {0}, {{%r9, %r8}};"
    got = apply(text, "u64", [("u64", x)])
    assert same(got, x >> np.uint64(32) | x << np.uint64(32))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(f"ptx_emulator.{name}")).failed == 0
