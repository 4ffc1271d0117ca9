# SPDX-License-Identifier: Apache-2.0
"""What `make site` adds to the pages of this folder: README as the first page, and the reference.

The reference is made of the docstrings of what `import rlkern` offers. A link to a file of the
repository that is no page becomes its name.
"""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# The folder of the module that a name comes from, or the end of its name, decides its page.
LOSSES = ("loss", "_logprob", "objective", "kl", "fused_head")
RETURNS = ("gae", "_return", "vtrace", "retrace", "scan", "advantage", "reward", "normalized")
PAGES = {
    "reference/losses.md": "Losses and log-probabilities",
    "reference/advantages.md": "Advantages and returns",
    "reference/others.md": "Everything else",
}


def public() -> dict[str, str]:
    """Returns the dotted place of every name that `import rlkern` offers."""
    tree = ast.parse((ROOT / "rlkern/_exports.py").read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.name] = f"{node.module}.{alias.name}"
    return found


def page_of(name: str) -> str:
    """Returns the page that a name stands on."""
    ending = name.lower()
    for page, words in zip(PAGES, (LOSSES, RETURNS)):
        if ending.endswith(words):
            return page
    return "reference/others.md"


def on_files(files, config):
    """Adds README and the pages of the reference."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    readme = readme.replace('"docs/', '"')
    added = {"index.md": readme}
    names = public()
    for page, title in PAGES.items():
        entries = [f"::: {names[name]}\n" for name in sorted(names, key=str.lower)
                   if page_of(name) == page]  # fmt: skip
        added[page] = f"# {title}\n\n" + "\n".join(entries)
    for path, text in added.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to files that are no pages into their names, and names of files into titles."""

    def kept(match):
        text, target = match[1], match[2]
        if re.match(r"(https?:|#|mailto:)", target):
            return match[0]
        base = Path(page.file.src_uri).parent
        path = (Path("/") / base / target.partition("#")[0]).as_posix()
        parts: list[str] = []
        for part in path.split("/")[1:]:
            if part == ".." and not parts:
                return text  # outside of the documents
            parts = parts[:-1] if part == ".." else [*parts, part]
        known = files.get_file_from_path("/".join(parts))
        return match[0] if known is not None else text

    # The pages are light whatever the reader's system is.
    markdown = re.sub(r'<source media="[^"]*dark[^"]*"[^>]*>', "", markdown)
    # A block that is to be a file says so in its first line.
    markdown = re.sub(r"(?m)^```(\w+) (\w+\.\w+)$", r'```\1 title="\2"', markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", kept, markdown)
