# SPDX-License-Identifier: Apache-2.0
"""Which matrix products the fused linear makes: those that are wanted, and no more."""

from dataclasses import replace

import pytest
import torch
from linear_helpers import PATHS, evaluated, problem

from rlkern.testing.cases import Case

PLAIN = Case("plain", B=3, T=5, V=37)
# Where the two matrices are among the arguments of a product.
PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}


def products(function) -> list[tuple]:
    """Returns the shapes of the matrices of each product that function makes."""
    with torch.profiler.profile(record_shapes=True) as profile:
        function()
    events = [e for e in profile.events() if e.name in PRODUCTS]
    shapes = [e.input_shapes[PRODUCTS[e.name] :][:2] for e in events]
    return [tuple(tuple(s) for s in pair) for pair in shapes]


@pytest.mark.parametrize(
    "path,products_of_a_wave", (("loss", (1, 1, 1)), ("scores", (2, 1, 1))), ids=PATHS
)
def test_a_product_is_made_only_for_what_is_wanted(path, products_of_a_wave):
    V, H = 37, 7
    task = problem(replace(PLAIN, mask="full"), H=H, sources=("hidden", "weight", "bias"))
    forward, of_hidden, of_weight = ((16, H), (H, V)), ((16, V), (V, H)), ((V, 15), (15, H))

    def made(*wants):
        return products(lambda: evaluated(PATHS[path][0], task, wants, wave=20))

    expected = (forward,) * products_of_a_wave[0]
    assert sorted(made("hidden", "weight", "bias")) == sorted((*expected, of_hidden, of_weight))
    assert sorted(made("hidden")) == sorted((*expected, of_hidden))
    assert sorted(made("hidden", "bias")) == sorted((*expected, of_hidden))
    assert sorted(made("weight")) == sorted((*expected, of_weight))
    assert made() == [forward]


def test_an_adapter_never_needs_the_gradient_of_the_weight():
    V, H, R = 37, 7, 3
    task = problem(replace(PLAIN, mask="full"), H=H, R=R)
    made = products(lambda: evaluated(PATHS["loss"][0], task, ("hidden", "lora_a", "lora_b")))
    assert ((V, 15), (15, R)) in made and ((V, 15), (15, H)) not in made


def test_rows_that_do_not_count_are_left_out_of_every_product():
    task = problem(replace(PLAIN, B=40, T=3, mask="ragged"), H=7, sources=("hidden", "weight"))
    counted = int(task.batch.mask.sum())
    made = products(lambda: evaluated(PATHS["loss"][0], task, ("hidden", "weight"), wave=10**6))
    assert counted < 120 and {first[0] for first, _ in made} == {counted, task.case.V}


def test_a_longer_sequence_than_a_wave_is_multiplied_twice_and_a_shorter_once():
    task = problem(replace(PLAIN, B=2, T=40, mask="full", algorithm="gspo"), H=7,
                   sources=("hidden", "weight"))  # fmt: skip

    def forwards(wave):
        made = products(lambda: evaluated(PATHS["loss"][0], task, ("hidden",), wave=wave))
        return sum(second == (7, 37) for _, second in made)

    assert forwards(40) == 2 and forwards(39) == 2 * 3 and forwards(80) == 1
