# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: layers, refusals in one sentence, and one immutable object."""

import math

import pytest
from pydantic import ValidationError
from trainer_helpers import asked, changed, settings

from rlkern.algorithms import declarations
from rlkern.runs.settings.layers import dotted, leaves
from rlkern.runs.settings.yaml_file import parsed, read
from rlkern.trainer import UserError
from rlkern.trainer.preflight import check_coefficients
from rlkern.trainer.settings import Layer, Settings, differing, dump, of, resolve
from rlkern.trainer.settings.document import saved, text
from rlkern.trainer.settings.reads import READERS, facts, unread
from rlkern.trainer.settings.resolve import resolved

SOURCE = "some.yaml"


def refused(values, source=SOURCE):
    """Returns the sentence that refuses the values of a file."""
    with pytest.raises(UserError) as caught:
        resolve(Layer(source, values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRONG = [
    # wrong types
    ({"steps": "many"}, "steps must be a whole number, at least 1, got 'many'"),
    ({"steps": 2.5}, "steps must be a whole number, at least 1, got 2.5"),
    ({"steps": True}, "steps must be a whole number, at least 1, got True"),
    ({"name": 7}, "name must be text, got 7"),
    ({"memory.share_prompts": "maybe"}, "memory.share_prompts must be true or false, got 'maybe'"),
    ({"reward.weights": "1,x"}, "reward.weights must be finite numbers, got 'x'"),
    ({"data.options": 3, "task": "x"}, "data.options must be key: value pairs, got 3"),
    ({"coefficients": 3}, "coefficients must be key: value pairs, got 3"),
    (
        {"coefficients": {"kl_coef": [1]}},
        "coefficients.kl_coef must be a number or the name of a choice, got [1]",
    ),
    (
        {"batch": 3},
        "batch is a group of keys (prompts, epochs, minibatches, micro_batches, skip_silent),"
        " got 3",
    ),
    ({"lora": "big"}, "lora.rank must be a whole number, at least 1, got 'big'"),
    ({3: 4}, "a key must be text, got 3"),
    # out of bounds
    ({"steps": 0}, "steps must be a whole number, at least 1, got 0"),
    ({"sft": {"steps": 0}}, "sft.steps must be a whole number, at least 1, got 0"),
    (
        {"optimizer": {"lr": float("inf")}},
        "optimizer.lr must be a finite number above 0, got inf",
    ),
    ({"optimizer.beta2": 1}, "optimizer.beta2 must be a number from 0 to below 1, got 1"),
    ({"rollout.top_p": 0}, "rollout.top_p must be a number above 0, at most 1, got 0"),
    ({"eval.modes": []}, "eval.modes must be sampled, greedy or both, got []"),
    (
        {"coefficients": {"kl_coef": float("nan")}},
        "coefficients.kl_coef must be a number or the name of a choice, got nan",
    ),
    (
        {"groups": {"kind": "dynamic", "rounds": 0}},
        "groups.rounds must be a whole number, at least 1, got 0",
    ),
    # values that are no choice
    ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, mixed, got 'float16'; did you"),
    ({"eval.modes": "sampeld"}, "got 'sampeld'; did you mean sampled"),
    (
        {"groups": "dynamci"},
        "groups.kind must be one of all, dynamic, duplicate, got 'dynamci'; did you mean dynamic",
    ),
    (
        {"optimizer.decay": "lin"},
        "optimizer.decay.kind must be one of linear, cosine, got 'lin'; did you mean linear",
    ),
    ({"loss.compare": "fused"}, "loss.compare must be eager or null, got 'fused'"),
    # keys that do not exist
    ({"stepz": 1}, "there is no key 'stepz'; did you mean steps"),
    ({"batch": {"promps": 3}}, "there is no key 'batch.promps'; did you mean batch.prompts"),
    ({"batch.promps": 3}, "there is no key 'batch.promps'; did you mean batch.prompts"),
    ({"group_size": 3}, "there is no key 'group_size'; did you mean rollout.group_size"),
    ({"clip_low": 0.1}, "there is no key 'clip_low'; did you mean coefficients.clip_low"),
    ({"kl_coef": 0.1}, "did you mean reward.kl_coef or coefficients.kl_coef"),
    ({"critic": {"lrr": 1}}, "there is no key 'critic.lrr'; did you mean critic.lr"),
    ({"optimizer": {"decay": {"flor": 1}}}, "there is no key 'optimizer.decay.flor'; did you mean"),
    # keys of another alternative
    ({"groups.rounds": 3}, "groups.rounds is read only with groups.kind dynamic"),
    (
        {"groups": {"kind": "all", "rounds": 3}},
        "groups.rounds is read only with groups.kind dynamic",
    ),
    (
        {"groups": {"kind": "dynamic", "by": "copy"}},
        "groups.by is read only with groups.kind duplicate",
    ),
    (
        {"correction": {"kind": "sequence_truncate", "low": 1}},
        "correction.low is read only with correction.kind truncate or mask or sequence_mask or geo",
    ),
    (
        {"correction": {"kind": "binary_kl_mask", "low": 1, "high": 1}},
        "correction.low is read only with correction.kind truncate or mask",
    ),
    (
        {"correction": "total_variation_mask"},
        "correction.high must be given with the other keys of correction",
    ),
    (
        {"correction": {"kind": "mask", "high": float("nan")}},
        "correction.high must be a number above 0, or inf, got nan",
    ),
    # algorithms
    ({"algorithm": "gpro"}, "there is no algorithm 'gpro'; did you mean grpo (rlkern algorithms"),
    ({"algorithm": ["grpo"]}, "there is no algorithm ['grpo']"),
    (
        {"critic": {"lr": 0.1}},
        "critic.lr is read by runs that have a value function, which algorithm grpo does not;"
        " choose one that does (rlkern algorithms), or leave critic.lr out",
    ),
    (
        {"algorithm": "rloo", "reward": {"adaptive": {"horizon": 1}}},
        "reward.adaptive.target must be given with the other keys of reward.adaptive",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_a_mistake_is_named_by_source_key_expected_got_and_the_nearest_name(values, sentence):
    found = refused(values)
    assert found.startswith(f"{SOURCE}: ") and sentence in found


def test_the_source_is_the_last_layer_that_has_the_key():
    layers = [Layer("file", {"steps": "a", "seed": "b"}), Layer("flags", {"steps": "c"})]
    with pytest.raises(UserError, match="^flags: steps .* got 'c'$"):
        resolve(layers[0], layers[1], Layer("more", {"seed": 1}))
    with pytest.raises(UserError, match="^file: seed .* got 'b'$"):
        resolve(layers[0], Layer("flags", {"steps": 1}))


@pytest.mark.parametrize("key", [key for key, _ in leaves(Settings)])
def test_every_key_is_refused_by_its_own_name_with_what_it_takes(key):
    readers = [name for name, one in declarations().items() if not _unread(key, one.name)]
    assert readers, "no algorithm reads it"
    common = {"algorithm": readers[0], **_questions(key), **_beside(key)}
    wrong = {**common, key: object()} if key != "algorithm" else {key: object()}
    found = refused(wrong)
    named = "there is no algorithm <object" if key == "algorithm" else f"{key} must be "
    assert found.startswith(f"{SOURCE}: {named}"), found


def _questions(key):
    """Returns where the questions come from in a run that may read a key."""
    of_family = ("data.shots", "data.options", "data.template")
    of_file = key.startswith("data.") and key not in of_family
    return {"data.train": "x.jsonl"} if of_file else {"task": "x"}


def _beside(key):
    """Returns what has to stand beside a key of an alternative or of a group with a needed key."""
    several = {"reward.functions": "a,b"} if key.startswith("reward.weights") else {}
    kind = {"groups.rounds": "dynamic", "groups.by": "duplicate", "correction.low": "mask"}
    if key in kind:
        return {f"{key.split('.')[0]}.kind": kind[key]}
    return {"reward.adaptive.target": 1.0, **several} if "horizon" in key else several


def _unread(key, name):
    own = of(algorithm=name, **_questions(key), **asked(name))
    return unread(key, facts(own))


@pytest.mark.parametrize("infinite", (".inf", "inf"))
def test_a_bound_that_is_off_is_inf_in_files_and_flags(tmp_path, infinite):
    path, keys = tmp_path / "config.yaml", ("coefficients.log_ratio_max", "correction.high")
    path.write_text("".join(f"{key}: {infinite}\n" for key in keys))
    of_file = saved(path)
    of_flags = resolve(Layer("flags", {key: parsed(infinite) for key in keys}))
    path.write_text(text(of_file))
    for found in (of_file, of_flags, saved(path)):
        assert found.coefficients["log_ratio_max"] == found.correction.high == math.inf
        check_coefficients(found)


def test_null_of_a_plain_key_or_group_is_not_given_and_turns_off_a_group_that_may_be_off():
    nothing = {"steps": None, "batch": None, "groups": None, "rollout.engine": None, "name": None}
    assert of(**nothing) == of()
    on = Layer("file", {"lora": 4, "sft": {"steps": 3}, "correction": "mask"})
    assert (resolve(on).lora.rank, resolve(on).sft.steps) == (4, 3)
    over = {"lora": "null", "sft": None, "correction.low": None, "correction": None}
    found = resolve(on, Layer("flags", over))
    assert found.lora is None and found.sft is None and found.correction is None


def test_a_group_is_a_mapping_or_dotted_keys_or_its_main_key():
    expected = of(optimizer={"decay": {"kind": "cosine"}, "lr": 0.5}, groups={"kind": "dynamic"})
    assert of(**{"optimizer.decay": "cosine", "optimizer.lr": 0.5, "groups": "dynamic"}) == expected
    assert of(
        **{"optimizer.decay.kind": "cosine", "optimizer": "0.5", "groups.kind": "dynamic"}
    ) == (expected)
    assert of(reward="a,b", eval={"modes": ["greedy"], "pass_at": 1}).reward.functions == ("a", "b")


def test_later_layers_go_over_earlier_ones_key_by_key_and_all_over_the_algorithms_own():
    file = Layer("file", {"algorithm": "ppo", "batch": {"prompts": 4, "minibatches": 2}})
    found = resolve(file, Layer("flags", {"batch.prompts": 8}))
    assert (found.batch.prompts, found.batch.minibatches, found.batch.epochs) == (8, 2, 4)
    assert declarations()["ppo"].settings["batch.epochs"] == 4 != of().batch.epochs
    assert resolve(file, Layer("flags", {"batch.epochs": 1})).batch.epochs == 1
    assert of(coefficients={"clip_low": 0.1}).coefficients["clip_high"] == 0.2


def test_a_run_takes_of_a_shared_layer_what_it_reads_and_reports_the_rest():
    shared = Layer("file", {"critic.lr": 0.1, "steps": 7, "rollout.group_size": 2}, shared=True)
    own = resolved(shared, Layer("stage", {"algorithm": "sft"}))
    assert own.settings.steps == 7
    assert own.left == {("file", "critic.lr"), ("file", "rollout.group_size")}
    assert own.settings == of(algorithm="sft", steps=7)
    with pytest.raises(UserError, match="file: critic.lr is not read by sft"):
        resolve(shared, Layer("stage", {"algorithm": "sft"}))
    with pytest.raises(UserError, match="^stage: critic.lr is read by runs that have a value"):
        resolved(shared, Layer("stage", {"algorithm": "sft", "critic.lr": 0.1}))
    for wrong in ({"critic.lrr": 0.1}, {"steps": 0}):
        with pytest.raises(UserError, match=f"^file: .*{next(iter(wrong))}"):
            resolved(Layer("file", wrong, shared=True))


def _as_it_stands(name):
    return of(algorithm=name, **asked(name))


@pytest.mark.parametrize("name", declarations())
def test_what_a_run_writes_down_is_what_it_reads_and_resolves_to_the_same(name, tmp_path):
    own = _as_it_stands(name)
    assert of(**dump(own)) == own and of(**parsed(text(own))) == own
    (tmp_path / "config.yaml").write_text(text(own))
    assert saved(tmp_path / "config.yaml") == own and differing(own, own) is None
    written, run = dotted(Settings, dump(own)), facts(own)
    assert not [key for key in written if unread(key, run)]
    assert set(written) >= {key for key in declarations()[name].settings if not unread(key, run)}


def test_everything_that_may_be_off_is_written_down_when_it_is_on_and_comes_back():
    on = {"lora__alpha": 3.0, "sft__lr": 0.1, "correction__low": 0.5, "optimizer__decay": "cosine"}
    own = settings(algorithm="rloo", reward__adaptive=2.0, groups="duplicate", **on)
    assert of(**dump(own)) == own and changed(own) == own
    assert differing(own, changed(own, lora__alpha=4.0)) == ("lora.alpha", 3.0, 4.0)
    assert differing(own, changed(own, lora=None)) is not None
    assert differing(own, changed(own, output__dir="elsewhere", max_seconds=3.0)) is None


def test_settings_cannot_be_changed():
    own = settings(lora__rank=4)
    for group, key in ((own, "steps"), (own.batch, "prompts"), (own.lora, "rank")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(group, key, 3)
    assert changed(own, steps=3).steps == 3 and own.steps == Settings.model_fields["steps"].default


def test_yaml_takes_1e_3_for_a_number_and_refuses_a_key_that_is_there_twice(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("optimizer: {lr: 1e-3}\ncoefficients: {kl_coef: 2e-3, clip_low: 1.5e0}\n")
    assert read(file)["coefficients"] == {"kl_coef": 0.002, "clip_low": 1.5}
    own = resolve(Layer(str(file), read(file)))
    assert own.optimizer.lr == 0.001 and own.kl_coef == 0.002
    as_text = of(coefficients={"kl_coef": "1e-3", "kl_estimator": "k2"}).coefficients
    assert (as_text["kl_coef"], as_text["kl_estimator"]) == (0.001, "k2")
    for twice in ("steps: 1\nseed: 2\nsteps: 3\n", "batch:\n  epochs: 1\n  epochs: 1\n"):
        file.write_text(twice)
        with pytest.raises(UserError, match=r"x.yaml .* the key '\w+' is given twice.* line 3$"):
            read(file)


def test_a_file_that_is_no_settings_is_one_sentence(tmp_path):
    file = tmp_path / "x.yaml"
    for wrong in ("a: [", "- steps: 1\n", "steps", "a: b: c", "\tx: 1"):
        file.write_text(wrong)
        with pytest.raises(
            UserError, match=r"^\S*x.yaml (cannot be read as settings|must hold)"
        ) as x:
            read(file)
        assert "\n" not in str(x.value)
    with pytest.raises(UserError, match="none.yaml cannot be read as settings"):
        read(tmp_path / "none.yaml")


def test_readers_name_keys_that_exist():
    known = {key for key, _ in leaves(Settings)}
    groups = {key[:place] for key in known for place, c in enumerate(key) if c == "."}
    for keys, what, _ in READERS:
        assert set(keys.split()) <= known | groups and what
