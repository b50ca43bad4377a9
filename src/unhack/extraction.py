"""The program in a completion: where its fences are. Read alike by graders and by monitors; nothing is run."""

from __future__ import annotations

import re

# For whole lines without the blanks around them: two runs of blanks in one pattern would cost quadratic time.
_FENCE = re.compile(r"```[ \t]*(python3?|py3?)?", re.IGNORECASE)
_OTHER_FENCE = re.compile(r"```[ \t]*[\w+#.-]+")


def extract_code(text: str) -> str:
    """The program in a completion: all fenced blocks joined by newlines, or the whole text when there is no fence.

    A fence is a line of its own: ``` alone or with python, py or python3 (any case); an unterminated last block counts.
    A line with ``` and other words is not a fence of code: outside of a block, ``` and the name of another language
    start a block that is left out. Lines end where Python's do: a form feed or a Unicode separator in a string stays.
    A fence may be indented, as in a list; its lines then lose as many spaces, as far as they have them (CommonMark).
    """
    blocks, _ = blocks_of(text)
    if not blocks:
        return text
    return "\n".join("\n".join(block) for block in blocks) + "\n"


def blocks_of(text: str) -> tuple[list[list[str]], bool]:
    """The lines of each fenced block, and whether the last one is closed."""
    blocks: list[list[str]] = []
    inside = skipping = False
    indent = 0  # of the last opening fence
    for line in re.split(r"\r\n|\r|\n", text):
        bare = line.strip(" \t")
        if fence := _FENCE.fullmatch(bare):
            closes = inside or (skipping and not fence[1])
            inside, skipping = not closes, False
            if inside:
                blocks.append([])
                indent = len(line) - len(line.lstrip(" "))
        elif inside:
            blocks[-1].append(line[min(indent, len(line) - len(line.lstrip(" "))) :] if indent else line)
        else:
            skipping = skipping or _OTHER_FENCE.fullmatch(bare) is not None
    return blocks, not inside
