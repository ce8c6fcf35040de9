"""An answer that repeats its prompt, with guesses and without: the ratio of tokens a second of one engine to itself.

A program is to be said again with one name changed, and so is a paragraph: most of what is written stood in the prompt. One
answer at a time, since guesses are made for few. Order ABBA.
"""

import statistics
import time

from engines import Server

GOAL = 1.5
PAIRS, TOKENS = 6, 160
PROGRAM = '''def area(width, height):
    if width < 0 or height < 0:
        raise ValueError("a side is negative")
    return width * height


def volume(width, height, depth):
    if width < 0 or height < 0 or depth < 0:
        raise ValueError("a side is negative")
    return width * height * depth
'''
PARAGRAPH = "The north wind that crosses the mountains is cold and dry; it clears the sky, and it may blow for days. "
PROMPTS = [f"{PROGRAM}\n\n# The same once more:\n\n{PROGRAM}\n\n# The same once more:\n\n", PARAGRAPH * 4]


def rate(guess):
    server = Server(False, slots=1, more=["--guess-tokens", "8" if guess else "0"])
    try:
        for prompt in PROMPTS:
            server.complete(prompt, 1)
        began = time.monotonic()
        for prompt in PROMPTS:
            server.complete(prompt, TOKENS)
        return len(PROMPTS) * TOKENS / (time.monotonic() - began)
    finally:
        server.stop()


def run():
    ratios, with_guesses, without = [], [], []
    for at in range(PAIRS):
        order = (True, False) if at % 2 == 0 else (False, True)
        found = {guess: rate(guess) for guess in order}
        ratios.append(found[True] / found[False])
        with_guesses.append(found[True])
        without.append(found[False])
    ratio, median = statistics.median(ratios), statistics.median
    return {
        "figure": ratio, "unit": f"ratio of tokens a second, {median(with_guesses):.0f} to {median(without):.0f}",
        "goal": f">= {GOAL}", "pass": ratio >= GOAL, "peer": "the same engine without guesses", "ratio": ratio,
        "runs": PAIRS, "spread": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }
