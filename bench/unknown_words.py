"""Which words has a model never read? Rules over its tokenizer's merges, the only trace of words in a model's file.

Printed for each rule: the part that it warns of, of the captions' own words (all, and those of one caption alone), of
nonsense drawn letter by letter after the two before, of nonsense made of syllables, and of things no caption names.

    python bench/unknown_words.py [--model emoji] [--data emoji-scenes]
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from statistics import mean

from fastdiffusion import data
from fastdiffusion.models import native_denoiser
from fastdiffusion.models.registry import loaded
from fastdiffusion.nets import TextConditioned
from fastdiffusion.nets.text import normalized
from fastdiffusion.nets.tokenizer import BYTES

THINGS = """
admiral algebra almanac amber anchovy apron armchair asphalt attic avalanche axle ballot bamboozle barn barrister
beanbag biologist bishop blender blizzard boulder bracelet bramble brewery bridle bronze bungalow burglar cathedral
cellar centaur chandelier chapel charcoal chimney cinnamon circuit clarinet cliff clinic cobweb comet cottage courtyard
crocus curtain daffodil dandelion dashboard dome dungeon dwarf easel emerald fern ferret fiddle fjord galaxy garage
gazebo geyser gladiator goblet granite gravel gymnast hammock harbor harp hatchet hazelnut hedge helmet heron hinge
hornet hurdle igloo ivory jackal jigsaw jungle lagoon lantern lavender lawyer lichen lighthouse limestone loom lute
mackerel magpie manor marble marigold marsh meadow monastery mosaic moth mulberry nectar oasis obelisk orchard oregano
oyster padlock parasol pebble pelican peony plateau plum porcelain porcupine prairie propeller puddle pulley puppet
pyramid quarry quilt radish raft raven reindeer rooster saffron sailor salamander sapphire scarecrow spinach stallion
stork swamp tarantula telescope termite thistle trampoline tundra turnip vulture walnut walrus weasel windmill
woodpecker zeppelin
"""
ONSETS, ENDS = "b c d f g h j k l m n p r s t v w z br tr st bl gl qu", "n r l x ck sh m p"


def by_letters(vocabulary: list[str], draw: random.Random) -> str:
    """A word that looks like these: each letter as likely as after the two before it."""
    text = "^^"
    while not text.endswith("$"):
        text += draw.choice([w[i + 2] for w in vocabulary for i in range(len(w) - 2) if w[i : i + 2] == text[-2:]])
    return text[2:-1]


def by_syllables(draw: random.Random) -> str:
    onsets, ends = ONSETS.split(), ["", "", *ENDS.split()]
    return "".join(
        draw.choice(onsets) + draw.choice("aeiou") + draw.choice(ends) for _ in range(draw.choice((2, 2, 3)))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--data", default="emoji-scenes")
    args = parser.parse_args()
    net = native_denoiser(loaded(args.model)).net
    assert isinstance(net, TextConditioned), "a model without a text encoder"
    vocabulary = net.text_encoder
    texts = {normalized(text) for text in data.load(args.data).texts()}
    counts = Counter(word for text in texts for word in set(text.split()) if word.isalpha() and len(word) > 1)
    draw, framed = random.Random(0), [f"^^{word}$" for word in counts if word.isascii()]
    letters = dict.fromkeys(w for _ in range(600) if 4 <= len(w := by_letters(framed, draw)) <= 11)
    syllables = dict.fromkeys(by_syllables(draw) for _ in range(300))
    groups = {
        "read": list(counts),
        "read once": [word for word, n in counts.items() if n == 1],
        "letters": [word for word in letters if word not in counts][:200],
        "syllables": [word for word in syllables if word not in counts][:200],
        "things": draw.sample([word for word in THINGS.split() if word not in counts], 100),
    }

    def tokens(word: str) -> list[int]:
        return vocabulary.tokenizer.encode(f" {word}")

    def lengths(word: str) -> list[int]:
        return [len(vocabulary.tokenizer.token_bytes[t].strip()) for t in tokens(word)]

    strangeness = {
        "mean rank of the merges": lambda w: -mean(max(t - BYTES, 0) for t in tokens(w)),
        "lowest rank": lambda w: -min(tokens(w)),
        "squared lengths of the tokens": lambda w: -sum(n * n for n in lengths(w)) / len(w) ** 2,
        "joins for each letter": lambda w: (len(tokens(w)) - 1) / len(w),
        "number of tokens": lambda w: len(tokens(w)),
    }
    print(f"{'':52s}", *(f"{name:>10s}" for name in groups))
    print(f"{'':52s}", *(f"{len(group):10d}" for group in groups.values()))

    def show(name: str, strange) -> None:
        print(f"{name:52s}", *(f"{mean(map(strange, group)):10.1%}" for group in groups.values()), flush=True)

    show("the present rule", lambda w: not vocabulary.knows(w))
    for name, f in strangeness.items():
        ranked = sorted(map(f, groups["read"]))
        for part in (0.015, 0.05):
            limit = ranked[int((1 - part) * len(ranked))]  # at most that part of the words read is above
            show(f"{name}, at most {part:.1%} of the read", lambda w, f=f, limit=limit: f(w) > limit)
    for most in (3, 2, 1):
        show(f"at most {most} tokens", lambda w, most=most: len(tokens(w)) > most)


if __name__ == "__main__":
    main()
