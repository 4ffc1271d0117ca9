# SPDX-License-Identifier: Apache-2.0
"""What stands in the pictures of tables: a number, a letter and an arrow in the right cell."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from rlkern.control import tables  # noqa: E402

# S F F / F H F / F F G: the shortest ways go down twice and right twice, or the other way about.
MAP = ["SFF", "FHF", "FFG"]
LEFT, DOWN, RIGHT, UP = range(4)
# The way down and then right; everything else looks up.
GREEDY = [DOWN, UP, UP, DOWN, UP, UP, RIGHT, RIGHT, UP]


@pytest.fixture
def drawn(monkeypatch):
    """Returns a list that gets each figure instead of a file."""
    found = []
    monkeypatch.setattr(tables, "save_png", lambda figure, file: found.append(figure))
    return found


@pytest.fixture
def lake():
    made = gymnasium.make("FrozenLake-v1", desc=MAP, is_slippery=False)
    yield made.unwrapped
    made.close()


def words(axes, size=None):
    """Returns {(column, row): words} of what stands in the cells, of one size of letters."""
    found = {}
    for text in axes.texts:
        if size in (None, text.get_fontsize()):
            place = tuple(round(x) for x in text.get_position())
            found.setdefault(place, []).append(text.get_text())
    return found


def q_of(greedy):
    q = np.zeros((len(greedy), 4))
    q[np.arange(len(greedy)), greedy] = np.arange(1, len(greedy) + 1) / 10
    return q


def test_every_cell_has_its_value_and_its_arrow_and_a_place_to_end_has_its_letter(drawn, lake):
    tables.draw_action_values(lake, q_of(GREEDY), None)
    found = words(drawn[0].axes[0])
    assert found[0, 0] == ["S", "0.10", "↓"]
    assert found[0, 1] == [" ", "0.40", "↓"]
    assert found[1, 2] == [" ", "0.80", "→"]
    assert found[1, 1] == ["H"] and found[2, 2] == ["G"]
    assert len(found) == 9


def test_the_title_says_where_the_greedy_path_leads(drawn, lake):
    tables.draw_action_values(lake, q_of(GREEDY), None)
    title = drawn[0].axes[0].get_title(loc="left")
    assert title.endswith("; greedy path: 4 steps, return 1")
    (line,) = drawn[0].axes[0].lines
    assert line.get_xydata().tolist() == [[0, 0], [0, 1], [0, 2], [1, 2], [2, 2]]
    tables.draw_action_values(lake, q_of([UP] * 9), None)
    assert drawn[1].axes[0].get_title(loc="left").endswith("does not end")


def test_a_state_without_a_value_has_no_number(drawn, lake):
    v = np.arange(9.0)
    v[2] = np.nan
    tables.draw_state_values(lake, v, v + 20, None)
    estimated, true = (words(axes) for axes in drawn[0].axes)
    assert estimated[2, 0] == [" "] and estimated[1, 0] == [" ", "1.00"]
    assert true[1, 0] == [" ", "21.0"]  # two digits before the point leave room for one behind
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["estimated values", "true values"]


def test_the_number_stands_lower_where_an_arrow_is(drawn, lake):
    def height():
        return next(t.get_position()[1] for t in drawn[-1].axes[0].texts if "." in t.get_text())

    tables.draw_state_values(lake, np.zeros(9), None, None)
    assert height() == 0
    tables.draw_action_values(lake, q_of(GREEDY), None)
    assert 0 < height() < 0.5


def test_numbers_on_dark_cells_are_white(drawn, lake):
    tables.draw_state_values(lake, np.array([0, 0, 0, 0.6, 0, 0.8, 1, 0, 0]), None, None)
    numbers = {t.get_text(): t.get_color() for t in drawn[0].axes[0].texts if "." in t.get_text()}
    assert numbers["0.80"] == numbers["1.00"] == "white"
    assert numbers["0.60"] == numbers["0.00"] != "white"


def test_many_states_are_points_over_the_truth_and_few_a_row(drawn):
    env = gymnasium.make("CartPole-v1").unwrapped
    truth = np.arange(500.0)
    tables.draw_state_values(env, truth + 1, truth, None)
    tables.draw_state_values(env, truth[:5] + 1, truth[:5], None)
    tables.draw_state_values(env, truth + 1, None, None)
    (equal, states), (true, estimated), (alone,) = (figure.axes[0].lines for figure in drawn)
    assert np.array_equal(states.get_xydata(), np.stack([truth, truth + 1], 1))
    assert np.array_equal(equal.get_xdata(), equal.get_ydata())
    assert true.get_ydata().tolist() == [0, 1, 2, 3, 4]
    assert estimated.get_ydata().tolist() == [1, 2, 3, 4, 5]
    assert len(alone.get_ydata()) == 500
    legends = [[t.get_text() for t in f.axes[0].get_legend().get_texts()] for f in drawn[:2]]
    assert legends == [["equal", "a state"], ["true value", "estimated value"]]


def test_blackjack_is_shown_by_its_sums_and_the_dealers_card(drawn):
    env = gymnasium.make("Blackjack-v1").unwrapped
    sizes = [space.n for space in env.observation_space.spaces]
    q = np.zeros((*sizes, 2))
    q[20, 1, 0, 0] = 0.9  # 20 without an ace against an ace: stick
    q[12, 10, 1, 1] = 0.5  # 12 with a usable ace against a ten: take a card
    tables.draw_action_values(env, q.reshape(-1, 2), None)
    without, usable = drawn[0].axes
    assert words(without)[0, 8] == ["S 0.90"] and words(usable)[9, 0] == ["H 0.50"]
    assert words(without)[9, 0] == ["S 0.00"]
    colors = {t.get_text(): t.get_color() for axes in (without, usable) for t in axes.texts}
    assert colors["S 0.90"] == colors["H 0.50"] == "white" != colors["S 0.00"]
    assert [t.get_text() for t in without.get_xticklabels()][::9] == ["A", "10"]
    assert [t.get_text() for t in without.get_yticklabels()][::9] == ["12", "21"]
    ends = [axes.get_title(loc="left").split("; ")[1] for axes in drawn[0].axes]
    assert ends == ["no usable ace", "a usable ace"]
