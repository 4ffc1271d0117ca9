# SPDX-License-Identifier: Apache-2.0
"""What a person reads of a run: lines, tables, and a panel for whatever was measured."""

import io
from math import nan
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from trainer_helpers import settings

from rlkern.runs.plot import draw_line, legend, smooth
from rlkern.trainer.show import plot
from rlkern.trainer.show.display import Display
from rlkern.trainer.show.report import pick_samples
from rlkern.trainer.tasks.task import Item

ONLINE = {
    "reward": 0.25,
    "loss": 0.0,
    "grad_norm": 0.5,
    "ratio/mean": 1.0,
    "entropy": 1.0,
    "clip_ratio/region_mean": 0.0,
    "clip_ratio/low_mean": 0.0,
    "completions/mean_length": 5.0,
    "time/step": 0.1,
    "eval/accuracy": 0.2,
    "eval/accuracy_sampled": 0.2,
    "eval/pass@1": 0.2,
    "eval/pass@4": 0.5,
}
CLIPPED = {**ONLINE, "clip_ratio/region_mean": 0.1, "clip_ratio/low_mean": 0.1}
PAIRS = {
    "loss": 0.69,
    "grad_norm": 0.5,
    "rewards/accuracies": 0.75,
    "rewards/chosen": 0.1,
    "rewards/rejected": -0.1,
    "rewards/margins": 0.2,
    "eval/accuracy": 0.6,
    "eval/pair_accuracy": 0.6,
}
PPO = {
    "objective/kl": 0.3,
    "objective/non_score_reward": -0.1,
    "critic/vf_loss": 0.1,
    "critic/vf_explained_var": 0.4,
    "rewards/scorer/mean": 0.3,
    "rewards/exact_match/mean": 0.1,
}


def test_samples_are_the_best_and_the_worst_answer_to_each_of_four_questions():
    reward = torch.tensor(
        [[0.2, 0.9, nan, 0.1], [0.5] * 4, [nan] * 4, [nan, nan, 0.3, nan], [1] * 4]
    )
    rows = SimpleNamespace(
        shaped_reward=reward.flatten(),
        group_size=4,
        item=[Item(f"{q}?", "") for q in range(5) for _ in range(4)],
        text=[f"{q}{a}" for q in range(5) for a in "abcd"],
    )
    found = [(asked, said) for asked, said, _ in pick_samples(rows, settings())]
    assert found == [("0?", "0b"), ("0?", "0d"), ("1?", "1a"), ("2?", "2a"), ("3?", "3c")]


def shown(*steps, terminal=False):
    """Returns what a display prints of these steps."""
    out = io.StringIO()
    display = Display(Console(file=out, width=200, force_terminal=terminal, color_system=None))
    with display:
        display.begin(settings(steps=len(steps)), 0)
        for number, values in enumerate(steps, 1):
            display.step(number, values, line=True)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_loss_of_zero_is_explained_once_where_it_occurs(terminal):
    other = {**ONLINE, "loss": 0.1}
    out = shown(other, ONLINE, ONLINE, terminal=terminal)
    assert out.count("the loss is 0 because every ratio is 1") == 1
    assert "(norm 0.5)" in out


@pytest.mark.parametrize(
    "change",
    [{"loss": 1e-3}, {"grad_norm": 0.0}, {"ratio/mean": 1.1}, {"grad_norm": float("nan")}],
    ids=str,
)
def test_another_zero_is_not_explained_away(change):
    assert "note" not in shown({**ONLINE, **change})


def test_a_line_says_what_was_measured_and_nothing_else():
    online, pairs, ppo = shown(ONLINE), shown(PAIRS), shown({**ONLINE, **PPO})
    assert "reward 0.250" in online and "chosen ahead" not in online and "value" not in online
    assert "chosen ahead 0.750  margin 0.200  loss 0.6900" in pairs and "entropy" not in pairs
    assert "scorer 0.300  exact_match 0.100" in ppo and "kl in reward 0.300" in ppo
    assert "value loss 0.1000  explained 0.40" in ppo


def test_the_last_table_has_a_row_for_each_thing_measured_at_both_ends(tmp_path):
    out = io.StringIO()
    values = {key: value for key, value in ONLINE.items() if key.startswith("eval/")}
    summary = {
        "name": "1-x",
        "wall_seconds": 3.0,
        "backend": "cpu",
        "compare": {},
        **{f"{key}_before": value for key, value in values.items()},
        **{f"{key}_after": value + 0.3 for key, value in values.items()},
    }
    display = Display(Console(file=out, width=120))
    display.final(tmp_path / "run", summary)
    display.stages(tmp_path / "p", [summary, summary])
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["│", "pass@4", "│", "0.500", "│", "0.800", "│", "│"] in lines
    assert sum("sampled" in line for line in lines) == 3
    assert not any("pass@1" in line or "accuracy" in line[1:2] for line in lines)


@pytest.mark.parametrize(
    ("values", "titles"),
    [
        (ONLINE, ["right on", "reward of", "entropy", "length of", "gradient", "seconds"]),
        (CLIPPED, ["right on", "reward of", "entropy", "share of clipped", "gradient", "seconds"]),
        (PAIRS, ["right on", "pairs of", "rewards of the answers", "loss", "gradient"]),
        (
            {**ONLINE, **PPO},
            ["right on", "reward of", "mean reward by scorer and by exact_match", "value function"]
            + ["entropy", "KL of an answer", "length of", "gradient", "seconds"],
        ),
    ],
    ids=["online", "clipped", "pairs", "ppo"],
)
def test_a_panel_is_drawn_for_each_thing_measured(tmp_path, monkeypatch, values, titles):
    from matplotlib.figure import Figure

    drawn = []
    real = Figure.savefig

    def savefig(figure, *arguments, **keywords):
        drawn.extend(axes.get_title(loc="left") for axes in figure.axes)
        return real(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", savefig)
    lines = [{"step": step, **values} for step in range(4)]
    plot.plot_curves(lines, tmp_path / "curves.png", title="x")
    found = [title for title in drawn if title]
    assert [title[: len(start)] for title, start in zip(found, titles)] == titles
    assert len(found) == len(titles)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_groups_are_drawn_where_more_were_sampled_than_trained_on():
    line = {"step": 3, "sampling/groups_trained": 8, "sampling/groups_sampled": 24}
    assert not plot._sampled_on([line])
    assert plot._sampled_on([{**line, "sampling/groups_sampled": 32}])
    assert not plot._sampled_on([PAIRS | {"step": 1}])


def test_a_smoothed_curve_neither_leads_nor_lags():
    jump = [0.0] * 30 + [1.0] * 30
    found = smooth(jump)
    assert found[29] < 0.5 < found[30]
    assert found == pytest.approx([1 - x for x in reversed(found)])
    assert smooth([2.5]) == [2.5] and smooth([]) == []


def test_a_single_measurement_can_be_seen():
    for steps, marker in (([1], "o"), ([1, 2], "None")):
        axes = Figure().subplots()
        draw_line(axes, [{"step": step, "kl": 2.0} for step in steps], "kl", "blue", "kl")
        assert axes.lines[-1].get_marker() == marker


@pytest.mark.parametrize("label", ["kl", None])
def test_a_legend_is_there_where_a_curve_has_a_name(label):
    axes = Figure().subplots()
    draw_line(axes, [{"step": step, "kl": 2.0} for step in (1, 2)], "kl", "blue", label)
    legend(axes)
    assert (axes.get_legend() is not None) == (label is not None)


@pytest.mark.parametrize("name", ["accuracy", "reward"])
def test_what_is_measured_is_called_what_it_is(tmp_path, name):
    out = io.StringIO()
    display = Display(Console(file=out, width=200))
    values = {"eval/accuracy": 1.5, f"eval/{name}_sampled": 1.5}
    display.evaluation(3, values)
    ends = {f"{key}_{when}": value for key, value in values.items() for when in ("before", "after")}
    summary = {**ends, "name": "one", "wall_seconds": 1.0, "backend": "cpu", "compare": {}}
    display.final(tmp_path / "one", summary)
    display.stages(tmp_path / "all", [summary])
    other = {"accuracy": "reward", "reward": "accuracy"}[name]
    assert out.getvalue().count(f"held-out {name}") == 3
    assert f"held-out {other}" not in out.getvalue()


def test_every_curve_of_an_evaluation_is_drawn_in_a_way_of_its_own():
    keys = ("accuracy_sampled", "accuracy_greedy", *(f"pass@{2**k}" for k in range(1, 6)))
    lines = [{"step": s, **{f"eval/{key}": 0.1 * s for key in keys}} for s in (0, 1)]
    axes = Figure().subplots()
    plot._accuracy(axes, lines)
    assert len({(x.get_color(), x.get_linestyle()) for x in axes.lines}) == len(keys) == 7
