# SPDX-License-Identifier: Apache-2.0
"""Puts the indented parts of docstrings, and their examples, into blocks of Markdown."""

import re
import textwrap

import griffe


def fenced(text: str) -> str:
    """Returns a docstring with equations, lists of arguments and examples as blocks.

    >>> print(fenced("Returns x.\\n\\nArguments\\n    a  (B,)\\n    b  (B,)"))
    Returns x.
    <BLANKLINE>
    **Arguments**
    <BLANKLINE>
    ```text
    a  (B,)
    b  (B,)
    ```
    """
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.split("\n")
        if lines[0].startswith(">>> "):
            parts.append(f"```python\n{paragraph}\n```")
            continue
        while lines:
            inside = lines[0].startswith("    ")
            count = next((i for i, x in enumerate(lines) if x.startswith("    ") != inside),
                         len(lines))  # fmt: skip
            run, lines = lines[:count], lines[count:]
            if inside:
                parts.append("```text\n" + textwrap.dedent("\n".join(run)) + "\n```")
            elif lines and len(run[-1].split()) == 1:  # a heading, such as Arguments
                parts += ["\n".join(run[:-1])] if run[:-1] else []
                parts.append(f"**{run[-1]}**")
            else:
                parts.append("\n".join(run))
    return "\n\n".join(parts)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_instance(self, *, obj, **_):
        """Rewrites one."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
