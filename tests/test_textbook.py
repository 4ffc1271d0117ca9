# SPDX-License-Identifier: Apache-2.0
"""What the figures of the textbook are there to show, in few runs and in those on record."""

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from benchmarks.textbook import games, numbers, plots, walks  # noqa: E402
from benchmarks.textbook.__main__ import FIGURES, PICTURES, RECORD, ROOT, recorded  # noqa: E402


def td_is_below_mc(found: dict) -> None:
    td = [error for name, error in found.items() if name.startswith("TD")]
    mc = [error for name, error in found.items() if name.startswith("MC")]
    assert max(td) < min(mc)


def the_middle_is_best(errors: list[float]) -> None:
    assert min(errors) < 0.85 * errors[0] and min(errors) < 0.85 * errors[-1]


def n_in_the_middle(found: dict) -> None:
    the_middle_is_best(list(found.values()))
    assert min(found, key=found.get) in ("n = 2", "n = 4", "n = 8")


def lambda_in_the_middle(found: dict) -> None:
    for method in ("off-line λ-return", "TD(λ)"):
        own = {name: error for name, error in found.items() if name.startswith(method)}
        the_middle_is_best(list(own.values()))
        assert min(own, key=own.get).split()[-1] in ("0.4", "0.8", "0.9")


def sarsa_is_safe_and_earns_more(found: dict) -> None:
    safe, best = found["SARSA"], found["Q-learning"]
    assert (safe["greedy path"], best["greedy path"]) == (-17.0, -13.0)
    assert safe["reward during learning"] > best["reward during learning"] + 10


def twenty_is_good_and_more_episodes_are_smoother(found: dict) -> None:
    few, many = found.values()
    assert many["value with 20"] > 0.5 and many["value with 12 to 19"] < 0
    for name in ("roughness with a usable ace", "roughness without a usable ace"):
        assert many[name] < few[name]
    assert few["roughness with a usable ace"] > few["roughness without a usable ace"]


SHOWN = {
    "6.2": td_is_below_mc,
    "7.2": n_in_the_middle,
    "12.3": lambda_in_the_middle,
    "6.4": sarsa_is_safe_and_earns_more,
    "5.1": twenty_is_good_and_more_episodes_are_smoother,
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_recorded_figure_shows_what_the_textbook_says(name):
    line = recorded(ROOT / RECORD)[name]
    SHOWN[name](line["numbers"])
    again = FIGURES[name].numbers(line["curves"])
    assert line["numbers"] == approximately(again)
    assert (ROOT / PICTURES / f"figure_{name.replace('.', '_')}.png").is_file()


def approximately(tree):
    """Returns what equals a tree of numbers up to the rounding of the curves."""
    if isinstance(tree, dict):
        return {key: approximately(each) for key, each in tree.items()}
    return pytest.approx(tree, abs=2e-4) if isinstance(tree, float) else tree


def test_td_is_below_monte_carlo_in_twenty_runs():
    td_is_below_mc(numbers.of_6_2(walks.figure_6_2(20)))


@pytest.mark.parametrize(
    "learn, settings",
    [
        (walks.learn_n, (1, 4, 64)),
        (walks.learn_offline, (0.0, 0.8, 1.0)),
        (walks.learn_lambda, (0.0, 0.8, 1.0)),
    ],
)
def test_the_middle_of_a_range_is_best_in_ten_runs(learn, settings):
    curves = [{"rms": walks.over_alphas(learn, each, 10, 0)} for each in settings]
    the_middle_is_best([walks.best(each) for each in curves])


def test_the_methods_meet_at_the_ends_of_their_ranges():
    for one, other in (
        ((walks.learn_lambda, 0.0), (walks.learn_n, 1)),
        ((walks.learn_offline, 1.0), (walks.learn_n, 10**6)),
    ):
        pair = [walks.over_alphas(*each, 3, 0) for each in (one, other)]
        np.testing.assert_allclose(*(np.array(each, float) for each in pair), rtol=1e-9)


def test_sarsa_is_safe_and_earns_more_in_ten_runs(tmp_path):
    found = games.figure_6_4(10, episodes=300)
    sarsa_is_safe_and_earns_more(numbers.of_6_4(found))
    plots.draw_6_4(found, tmp_path / "cliff.png")
    assert (tmp_path / "cliff.png").read_bytes()[:4] == b"\x89PNG"


def test_more_episodes_of_blackjack_are_smoother():
    tables = games.figure_5_1((1000, 10_000))
    twenty_is_good_and_more_episodes_are_smoother(numbers.of_5_1(tables))
