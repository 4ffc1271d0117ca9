# SPDX-License-Identifier: Apache-2.0
"""Small files of one's own, in every form that something is learned from."""

import json

USER, ASSISTANT = "user", "assistant"


def sums(count=10):
    return [(a, b) for a in range(count) for b in range(count)]


def said(role, text):
    return {"role": role, "content": text}


def asked(a, b):
    return [said(USER, f"{a}+{b}=")]


def answered(text):
    return [said(ASSISTANT, text)]


ROWS = {
    "prompts": lambda a, b: {"prompt": f"{a}+{b}=", "answer": a + b},
    "chats": lambda a, b: {"prompt": asked(a, b), "answer": str(a + b), "level": a},
    "completions": lambda a, b: {"prompt": f"{a}+{b}=", "completion": str(a + b)},
    "messages": lambda a, b: {"messages": asked(a, b) + answered(str(a + b))},
    "turns": lambda a, b: {
        "messages": asked(a, b) + answered(str(a + b)) + asked(b, a) + answered(str(a + b))
    },
    "text": lambda a, b: {"text": f"{a}+{b}={a + b}"},
    "pairs": lambda a, b: {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)},
    "chat_pairs": lambda a, b: {
        "chosen": asked(a, b) + answered(str(a + b)),
        "rejected": asked(a, b) + answered(str(a + b + 1)),
    },
    "labels": lambda a, b: {
        "prompt": f"{a}+{b}=",
        "completion": str(a + b if b % 2 else a),
        "label": bool(b % 2),
    },
}


def write(path, rows):
    """Returns the path of a file with these rows, one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def data_file(folder, form, pairs=None, name=None):
    """Returns the path of a file of sums in a form of ROWS."""
    rows = [ROWS[form](a, b) for a, b in (sums() if pairs is None else pairs)]
    return write(folder / (name or f"{form}.jsonl"), rows)
