# SPDX-License-Identifier: Apache-2.0
"""The model card of an exported run, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkern.runs.display import number
from rlkern.trainer.settings import Settings
from rlkern.trainer.show.display import measured
from rlkern.trainer.show.summary import differing_settings

# Settings that say where a run lay, not what it was.
_PLACES = ("output.dir",)
_LOADING = """```python
from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""


@dataclass(frozen=True)
class Card:
    """What a model card says.

    step      of the checkpoint that is exported
    lines     metrics.jsonl
    data      SHA-256 of the files that were learned from, by key
    versions  of the packages that exported it
    notes     sentences of this model alone

    Where there are lines, curves.png lies beside it.
    """

    name: str
    folder: str
    settings: Settings
    step: int
    lines: Sequence[dict]
    data: Mapping[str, str]
    versions: Mapping[str, str]
    notes: Sequence[str] = ()

    @property
    def scores(self) -> bool:
        """Whether the model scores answers and writes none."""
        return self.settings.declared.trains != "policy"

    def text(self) -> str:
        """Returns the card."""
        kind = "SequenceClassification" if self.scores else "CausalLM"
        parts = [
            self._head(),
            f"# {self.name}",
            self._what(),
            _LOADING.format(kind=f"AutoModelFor{kind}", folder=self.folder),
            *self.notes,
            "## Held out",
            self._held_out(),
            *(["![curves of the run](curves.png)"] if self.lines else []),
            "## Settings",
            self._settings(),
            "## Versions",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        ]
        return "\n\n".join(parts) + "\n"

    def _head(self) -> str:
        task = "text-classification" if self.scores else "text-generation"
        tags = f"tags: [rlkern, {self.settings.algorithm}]"
        return f"---\nlibrary_name: transformers\npipeline_tag: {task}\n{tags}\n---"

    def _what(self) -> str:
        settings = self.settings
        trained = "A reward model" if self.scores else "A language model"
        files = "".join(
            f" SHA-256 of {key}: `{digest}`." for key, digest in sorted(self.data.items())
        )
        what = "data" if settings.data.train is not None else "task"
        return (
            f"{trained}, trained by `rlkern train` from {_public(settings.model)} with"
            f" {settings.algorithm} on the {what} {settings.asked}, seed {settings.seed}: the"
            f" checkpoint after step {self.step}.{files}"
        )

    def _held_out(self) -> str:
        found = [line for line in self.lines if line.get("eval/accuracy") is not None]
        here = next((line for line in found if line["step"] == self.step), None)
        if not found:
            return "The run was not evaluated."
        columns = {"before": found[0]}
        if here is None:
            columns[f"step {found[-1]['step']} (step {self.step} was not evaluated)"] = found[-1]
        elif here is not found[0]:
            columns[f"step {self.step}"] = here
        values = [dict(measured(line)) for line in columns.values()]
        rows = [
            f"| {label} | {' | '.join(_shown(column.get(label)) for column in values)} |"
            for label in values[0]
        ]
        bar = "| --- |" + " ---: |" * len(columns)
        return "\n".join([f"| | {' | '.join(columns)} |", bar, *rows])

    def _settings(self) -> str:
        rows = [
            f"| `{key}` | `{_public(value)}` | `{default}` |"
            for key, value, default in differing_settings(self.settings)
            if key not in _PLACES
        ]
        if not rows:
            return "Every setting is the default."
        return "\n".join(["| key | value | default |", "| --- | --- | --- |", *rows])


def _shown(value: float | None) -> str:
    return "" if value is None else number("{:.3f}", value)


def _public(value: str) -> str:
    r"""Returns a setting as others may read it: of a place on this machine its last two names, a
    bar or a line break of a table cell escaped.

    >>> _public("/a/b/models/llama"), _public("x|y")
    ('models/llama', 'x\\|y')
    """
    parts = [
        "/".join(Path(part).parts[-2:]) if Path(part).is_absolute() else part
        for part in value.split(", ")
    ]
    return ", ".join(parts).replace("|", "\\|").replace("\n", "\\n")
