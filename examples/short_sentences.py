# SPDX-License-Identifier: Apache-2.0
"""Chat messages from a text, and a reward that checks three conditions, without a right answer.

python examples/short_sentences.py train.jsonl eval.jsonl            words of a novel
python examples/short_sentences.py train.jsonl eval.jsonl TEXT.txt   words of any text

The novel, In the Year 2889 of Jules Verne, is in the package reasoning-gym. Each row asks for a
short sentence with one of its words:

rlkern train --model smollm2 --data.train train.jsonl --data.eval eval.jsonl \
    --reward examples/short_sentences.py:score
"""

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

MOST_WORDS = 10
HELD_OUT = 100


def score(completions, word, **columns):
    """Returns for each answer (a list of messages) the share of the three conditions that it
    meets."""
    texts = [said[-1]["content"] for said in completions]
    return [sum(fulfilled(text, one)) / 3 for text, one in zip(texts, word)]


def fulfilled(text, word):
    """Returns whether an answer is one sentence, whether it contains the word, and whether it is
    short and repeats no word of more than three letters.

    >>> fulfilled("The paper was on his table.", "paper")
    (True, True, True)
    >>> fulfilled("Paper. I like paper.", "paper"), fulfilled("He is", "paper")
    ((False, True, False), (False, False, False))
    """
    words = re.findall(r"[a-z']+", text.lower())
    longer = [each for each in words if len(each) > 3]
    return (
        re.fullmatch(r'"?[A-Z][^.!?\n"]*[.!?]"?', text.strip()) is not None,
        word in words,
        4 <= len(words) <= MOST_WORDS and len({*longer}) == len(longer),
    )


def words_of(text):
    """Returns the words of 4 to 9 letters that occur at least twice in a text, without names."""
    found = Counter(re.findall(r"\b[a-z]{4,9}\b", text))
    return sorted(word for word, count in found.items() if count > 1)


def write(train, held_out, text, seed=0):
    """Writes two files, whose rows ask for different words; returns how many rows each has."""
    words = words_of(text)
    random.Random(seed).shuffle(words)
    parts = {train: words[HELD_OUT:], held_out: words[:HELD_OUT]}
    for path, some in parts.items():
        with Path(path).open("w", encoding="utf-8") as file:
            for word in some:
                asked = f'Write one short sentence with the word "{word}".'
                row = {"messages": [{"role": "user", "content": asked}], "word": word}
                print(json.dumps(row), file=file)
    return [len(some) for some in parts.values()]


def novel():
    """Returns the novel that reasoning-gym takes its sentences from."""
    from reasoning_gym.data import read_data_file

    return read_data_file("in_the_year_2889.txt")


if __name__ == "__main__":
    own = Path(sys.argv[3]).read_text(encoding="utf-8") if len(sys.argv) > 3 else novel()
    counts = write(*sys.argv[1:3], own)
    print(f"{counts[0]} rows in {sys.argv[1]}, {counts[1]} in {sys.argv[2]}")
