"""People in everyday prompts: who it is, how they feel and look, what they do, by the nearest name of the emoji model.

Of people it knows names that hold all of it ("woman frowning", "man red hair", "woman biking"), each of which it draws
well, and no others: of "a sad girl" or "a man with glasses" something between all that these words belong to is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .known import ARTICLES, NARROW, SCENIC, Names, forms
from .things import COLORS, COUNTS, SIZES

WOMAN, MAN, PERSON = "woman", "man", "person"
_CALLED = {
    WOMAN: "woman lady girl female gal mom mum mommy mother wife daughter sister aunt schoolgirl businesswoman",
    MAN: "man guy boy male gentleman dad daddy father husband son brother uncle dude fellow schoolboy businessman",
    PERSON: "person human adult child kid teenager somebody someone",
}
CALLED = {word: who for who, words in _CALLED.items() for word in words.split()}
YOUNG = {"girl": "girl", "schoolgirl": "girl", "daughter": "girl", "boy": "boy", "schoolboy": "boy", "son": "boy",
         "child": "child", "kid": "child"}  # fmt: skip
OLD = frozenset({"old", "elderly", "aged", "senior", "aging", "ancient"})
# What is behind "woman" in a name, and the words that say it: all words of one of the phrases, in any order
_SAID = {
    # what they do
    "running": "running, jogging, racing, sprinting",
    "walking": "walking, strolling, hiking",
    "dancing": "dancing, dance",
    "swimming": "swimming, swim",
    "surfing": "surfing, surfboard",
    "biking": "biking, cycling, bicycle, bike, cyclist",
    "rowing boat": "rowing, rowboat, canoe, kayak, paddling",
    "climbing": "climbing",
    "golfing": "golfing, playing golf",
    "lifting weights": "lifting weights, weightlifting, lifting, weights, dumbbell",
    "bouncing ball": "bouncing ball, playing basketball, basketball, dribbling",
    "playing handball": "playing handball, handball, playing volleyball, throwing ball, playing ball, "
    "playing football, playing soccer",
    "playing water polo": "playing water polo, water polo",
    "cartwheeling": "cartwheeling, cartwheel, gymnastics, doing gymnastics",
    "juggling": "juggling",
    "kneeling": "kneeling, praying",
    "standing": "standing",
    "in lotus position": "doing yoga, yoga, meditating, meditation, lotus position",
    "raising hand": "waving, waving hand, waving hello, saying hello, raising hand, hand raised",
    "bowing": "bowing, apologizing",
    "getting massage": "getting massage, massage",
    "getting haircut": "getting haircut, haircut",
    "gesturing OK": "gesturing ok",
    "gesturing NO": "gesturing no",
    "feeding baby": "feeding baby, holding baby, baby, newborn, toddler",
    "in bed": "sleeping, in bed, asleep, bed",
    "taking bath": "taking bath, bathing, bathtub, bath",
    "in manual wheelchair": "wheelchair",
    "with white cane": "white cane, blind",
    "detective": "detective, spying, spy",
    # what they are
    "health worker": "doctor, nurse, health worker, surgeon, medic",
    "teacher": "teacher, teaching, professor",
    "student": "student, graduating, graduate, graduation",
    "cook": "cook, cooking, chef, baking",
    "singer": "singer, singing, rock star",
    "artist": "artist, painting, painter, drawing",
    "technologist": "technologist, working computer, computer, laptop, programming, coding, programmer, typing, gaming",
    "scientist": "scientist, chemist",
    "pilot": "pilot",
    "judge": "judge, lawyer",
    "farmer": "farmer, farming, gardening, gardener",
    "mechanic": "mechanic, plumber",
    "factory worker": "factory worker, welder",
    "construction worker": "construction worker, builder",
    "office worker": "office worker, office",
    "firefighter": "firefighter, fire fighter",
    "police officer": "police officer, police, officer, cop",
    "astronaut": "astronaut, space suit, spacesuit",
    "guard": "guard",
    "superhero": "superhero",
    "mage": "mage, wizard, witch, sorcerer, magician",
    "fairy": "fairy",
    "vampire": "vampire",
    "elf": "elf",
    "zombie": "zombie",
    "genie": "genie",
    # how they look
    "with veil": "veil, wedding dress, bridal",
    "in tuxedo": "tuxedo, suit",
    "wearing turban": "turban",
    "with headscarf": "headscarf, hijab",
    "red hair": "red hair, ginger hair, red haired, redhead, redheaded, ginger",
    "curly hair": "curly hair, curly haired, curls, afro",
    "white hair": "white hair, gray hair, grey hair, white haired, gray haired, grey haired",
    "blond hair": "blond hair, blonde hair, blond, blonde, blond haired, blonde haired, yellow hair, golden hair",
    "bald": "bald, no hair",
    "beard": "beard, bearded",
    # how they feel
    "frowning": "sad, crying, unhappy, upset, depressed, lonely, disappointed, worried, weeping, in tears, frowning, "
    "scared, tired",
    "pouting": "angry, mad, annoyed, grumpy, furious, pouting, cross",
    "shrugging": "confused, unsure, shrugging, puzzled",
    "facepalming": "embarrassed, ashamed, facepalming, frustrated",
}  # fmt: skip
SAID = [(frozenset(phrase.split()), behind) for behind, phrases in _SAID.items() for phrase in phrases.split(", ")]
# What no name says, and every image of a person looks like
_IDLE = """
happy smiling cheerful joyful friendly young beautiful pretty cute handsome nice lovely laughing excited proud calm shy
brave kind sweet hair haired long short dark black brown straight wearing having has who is that clothes standing
looking strong
"""
IDLE = frozenset(_IDLE.split())
BEFORE = frozenset(word for words, _ in SAID for word in words) | IDLE | OLD | SIZES | COLORS | COUNTS
PAIR = {frozenset({WOMAN, MAN}): "woman and man holding hands", frozenset({WOMAN}): "women holding hands",
        frozenset({MAN}): "men holding hands"}  # fmt: skip


def called(word: str) -> str | None:
    """Whether a word calls somebody a woman, a man or a person."""
    return next((CALLED[form] for form in (word, *forms(word)) if form in CALLED), None)


def person(words: Sequence[str], table: Names) -> str | None:
    """The nearest name for words that describe somebody; None if they do not, or if they are a name themselves.

    Args:
        words: Folded, as in :func:`known.key`, with articles, and without the background.
        table: The names there are.
    """
    words = [word for word in words if word not in ARTICLES]
    at = next((i for i, word in enumerate(words) if called(word)), None)
    phrase = " ".join(words)
    if at is None or len(words) < 2 or phrase in table.everyday or phrase in table.search:
        return None
    if phrase in table.names:
        return table.names[phrase]
    before, after = words[:at], words[at + 1 :]
    if not all(word in BEFORE or word in NARROW for word in before) or not _describes(after):
        return None
    who = called(words[at])
    assert who is not None
    others = [other for word in after if (other := called(word))]
    many = words[at] not in CALLED or any(word in COUNTS for word in before)
    if (others and "and" in after) or many:
        both = frozenset({who, *others}) - {PERSON}
        return PAIR.get(both, "people holding hands")
    rest = [word for i, word in enumerate(words) if i != at]
    return _said(who, rest, table) or _plain(words[at], who, rest)


def _describes(after: Sequence[str]) -> bool:
    """Whether what follows a person is about them, and no word of another name ("man pouting" is one already)."""
    first = after[0] if after else "with"
    return first in NARROW | SCENIC | BEFORE or first.endswith("ing") or first in ("who", "that")


def _said(who: str, rest: Iterable[str], table: Names) -> str | None:
    """The name of somebody of whom the rest says something that names do, the most words first."""
    words = frozenset(rest)
    fits = [(len(phrase), -i, behind) for i, (phrase, behind) in enumerate(SAID) if phrase <= words]
    for _, _, behind in sorted(fits, reverse=True):
        for name in (f"{who} {behind}", f"{PERSON} {behind}", behind):
            if name.casefold() in table.names:
                return table.names[name.casefold()]
    return None


def _plain(word: str, who: str, rest: Iterable[str]) -> str:
    if OLD & frozenset(rest):
        return {PERSON: "older person"}.get(who, f"old {who}")
    return YOUNG.get(word, who)
