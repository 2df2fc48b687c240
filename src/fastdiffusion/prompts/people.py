"""People in everyday prompts: who it is, how they feel and look, what they do, by the nearest name of the emoji model.

Of people it knows names that hold all of it ("woman frowning", "man red hair", "woman biking"), each of which it draws
well, and no others: of "a sad girl" or "a man with glasses" something between all that these terms belong to is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .known import ARTICLES, NARROW, SCENIC, Names, forms
from .things import COLORS, COUNTS, SIZES

WOMAN, MAN, PERSON = "woman", "man", "person"
_CALLED = {
    WOMAN: "woman lady girl female gal mom mum mommy mother wife daughter sister aunt schoolgirl businesswoman "
    "girlfriend bride",
    MAN: "man guy boy male gentleman dad daddy father husband son brother uncle dude fellow schoolboy businessman "
    "boyfriend groom",
    PERSON: "person human adult child kid teenager somebody someone parent boss friend neighbor neighbour colleague "
    "guest",
}
CALLED = {term: who for who, terms in _CALLED.items() for term in terms.split()}
YOUNG = {"girl": "girl", "schoolgirl": "girl", "daughter": "girl", "boy": "boy", "schoolboy": "boy", "son": "boy",
         "child": "child", "kid": "child"}  # fmt: skip
OLD = frozenset({"old", "elderly", "aged", "senior", "aging", "ancient"})
# What is behind "woman" in a name, and the terms that say it: all terms of one of the phrases, in any order
_DESCRIBED = {
    # what they do
    "running": "running, runner, jogger, jogging, racing, sprinting",
    "walking": "walking, strolling, hiking",
    "dancing": "dancing, dance, dancer, ballerina, ballet",
    "swimming": "swimming, swim, swimmer",
    "surfing": "surfing, surfboard, surfer",
    "biking": "biking, cycling, bicycle, bike, cyclist",
    "rowing boat": "rowing, rowboat, canoe, kayak, paddling",
    "climbing": "climbing, climber",
    "golfing": "golfing, golf, golfer",
    "lifting weights": "lifting weights, weightlifting, lifting, weights, dumbbell, weightlifter",
    "bouncing ball": "bouncing ball, basketball, dribbling",
    "playing handball": "handball, volleyball, throwing ball, playing ball, playing football, soccer, footballer, "
    "football player",
    "playing water polo": "playing water polo, water polo",
    "cartwheeling": "cartwheeling, cartwheel, gymnastics, gymnast, acrobat",
    "juggling": "juggling, juggler",
    "kneeling": "kneeling, praying",
    "standing": "standing",
    "in lotus position": "doing yoga, yoga, meditating, meditation, lotus position",
    "raising hand": "waving, waving hand, waving hello, saying hello, raising hand, hand raised",
    "bowing": "bowing, apologizing",
    "getting massage": "getting massage, massage",
    "getting haircut": "getting haircut, haircut, hair cut",
    "gesturing OK": "gesturing ok",
    "gesturing NO": "gesturing no",
    "feeding baby": "feeding baby, holding baby, baby, newborn, toddler",
    "in bed": "sleeping, in bed, asleep, bed",
    "taking bath": "taking bath, bathing, bathtub, bath",
    "in manual wheelchair": "wheelchair",
    "with white cane": "white cane, blind",
    "detective": "detective, spying, spy, secret agent",
    # what they are
    "health worker": "doctor, nurse, health worker, surgeon, medic",
    "teacher": "teacher, teaching, professor",
    "student": "student, pupil, graduating, graduate, graduation",
    "cook": "cook, cooking, chef, baking",
    "singer": "singer, singing, rock star, guitarist, musician",
    "artist": "artist, painting, painter, drawing",
    "technologist": "technologist, working computer, computer, laptop, programming, coding, programmer, typing, gaming",
    "scientist": "scientist, chemist",
    "pilot": "pilot, flying plane",
    "judge": "judge, lawyer",
    "farmer": "farmer, farming, gardening, gardener",
    "mechanic": "mechanic, plumber, fixing, repairing",
    "factory worker": "factory worker, welder",
    "construction worker": "construction worker, builder",
    "office worker": "office worker, office",
    "firefighter": "firefighter, fire fighter",
    "police officer": "police officer, police, officer, cop",
    "astronaut": "astronaut, space suit, spacesuit",
    "guard": "guard",
    "superhero": "superhero, super hero, super",
    "mage": "mage, wizard, witch, sorcerer, magician",
    "fairy": "fairy",
    "vampire": "vampire",
    "elf": "elf",
    "zombie": "zombie",
    "genie": "genie",
    "pregnant": "pregnant, expecting",
    "fencing": "fencing, fencer",
    "skier": "skiing, skier",
    "snowboarder": "snowboarding, snowboarder",
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
    "shrugging": "confused, unsure, shrugging, puzzled, doesn't know, don't know, no idea",
    "facepalming": "embarrassed, ashamed, facepalming, frustrated",
}  # fmt: skip
DESCRIBED = [
    (frozenset(phrase.split()), behind) for behind, phrases in _DESCRIBED.items() for phrase in phrases.split(", ")
]
# What no name says, and every image of a person looks like
_IDLE = """
happy smiling cheerful joyful friendly young beautiful pretty cute handsome nice lovely laughing excited proud calm shy
brave kind sweet hair haired long short dark black brown straight wearing having has who is that clothes standing
looking strong
"""
IDLE = frozenset(_IDLE.split())
_ROLES = """
doctor nurse surgeon medic professor pupil graduate chef painter guitarist musician programmer chemist lawyer gardener
plumber welder builder cop officer wizard witch sorcerer magician dancer ballerina runner jogger swimmer surfer climber
golfer weightlifter footballer gymnast acrobat juggler cyclist spy agent player teacher student cook singer artist
scientist pilot judge farmer mechanic firefighter astronaut detective fencer
"""
ROLES = frozenset(_ROLES.split())
BEFORE = frozenset(term for terms, _ in DESCRIBED for term in terms) | IDLE | OLD | SIZES | COLORS | COUNTS
PARENTS = frozenset({"mother", "mom", "mum", "mommy", "father", "dad", "daddy", "parent"})
FAMILY = 2  # terms before it, at most: "my happy family"
PAIR = {frozenset({WOMAN, MAN}): "woman and man holding hands", frozenset({WOMAN}): "women holding hands",
        frozenset({MAN}): "men holding hands"}  # fmt: skip


def called(term: str) -> str | None:
    """Whether a term calls somebody a woman, a man or a person, by what they are too."""
    several = [] if term.endswith(("ing", "ed")) else [*forms(term)]
    known = next((CALLED[form] for form in (term, *several) if form in CALLED), None)
    return known or (PERSON if ROLES & {term, *several} else None)


def person(terms: Sequence[str], table: Names) -> str | None:
    """The nearest name for terms that describe somebody; None if they do not, or if they are a name themselves.

    Args:
        terms: Folded, as in :func:`known.key`, with articles, and without the background.
        table: The names there are.
    """
    terms = [term for term in terms if term not in ARTICLES]
    phrase = " ".join(terms)
    if not terms or (terms != [*ROLES & {phrase}] and (phrase in table.everyday or phrase in table.search)):
        return None
    if "family" in terms[: FAMILY + 1]:
        return table.names.get("family man woman girl boy")
    plainly = next((i for i, term in enumerate(terms) if called(term) and not ROLES & {term, *forms(term)}), None)
    at = next((i for i, term in enumerate(terms) if called(term)), None) if plainly is None else plainly
    if at is None or (len(terms) < 2 and (plainly is not None or phrase in table.names)):
        return None
    if phrase in table.names:
        return table.names[phrase]
    before, after = terms[:at], terms[at + 1 :]
    if any(_is_another_thing(term, terms[at], table) for term in before) or not _describes(terms[at], after, table):
        return None
    who = called(terms[at])
    assert who is not None
    if several := _several(who, terms, at, table):
        return several
    rest = terms if plainly is None else before + after
    made = _described(who, rest, table)
    return made if made or plainly is None else _plain(terms[at], who, rest)


def _is_another_thing(term: str, somebody: str, table: Names) -> bool:
    """Whether a term before somebody makes something else of them: a snow man."""
    if term in BEFORE or term in NARROW or called(term):
        return False
    return term in table.names or term in table.everyday or f"{term}{somebody}" in table.closed


def _describes(somebody: str, after: Sequence[str], table: Names) -> bool:
    """Whether what follows somebody is about them, and neither another thing nor a part of its name: a lady beetle."""
    first = after[0] if after else "with"
    if first == "and" and not any(map(called, after)):
        return False  # two things, of which none is left out
    if first in NARROW | SCENIC | BEFORE | {"who", "that"} or first.endswith("ing") or called(first):
        return True
    names = (table.names, table.everyday, table.search)
    return f"{somebody}{first}" not in table.closed and not any(
        phrase in known for known in names for phrase in (first, f"{somebody} {first}")
    )


def _several(who: str, terms: Sequence[str], at: int, table: Names) -> str | None:
    """The name of two people, or of a parent with children."""
    others = [term for term in terms[at + 1 :] if called(term) and not ROLES & {term, *forms(term)}]
    children = [YOUNG[form] for term in others for form in (term, *forms(term)) if form in YOUNG]
    if others and len(children) == len(others) and terms[at] in PARENTS:
        small = ["boy" if child == "child" else child for child in children]
        small *= 2 if len(small) == 1 and others[0] not in YOUNG else 1
        return table.names.get(f"family {who} {' '.join(sorted(small, reverse=True))}")
    many = terms[at] not in CALLED and not ROLES & {terms[at], *forms(terms[at])}
    if not (many or COUNTS & set(terms[:at]) or (others and "and" in terms)):
        return None
    both = frozenset({who, *filter(None, map(called, others))}) - {PERSON}
    spoken, group = set(terms), {frozenset({WOMAN}): "women", frozenset({MAN}): "men"}.get(both, "people")
    pair = {frozenset({WOMAN}): "woman woman", frozenset({MAN}): "man man"}.get(both, "woman man")
    if spoken & {"wrestling", "fighting"}:
        return f"{group} wrestling"
    if spoken & {"hugging", "cuddling", "hug"}:
        return "people hugging"
    if spoken & {"kissing", "kiss"}:
        return f"kiss {pair}"
    if spoken & {"love", "married", "wedding", "bride"}:
        return f"couple with heart {pair}"
    alike = _described(min(both, default=PERSON), terms, table)  # "people skiing": one of them
    return alike or PAIR.get(both, "people holding hands")


def _described(who: str, rest: Iterable[str], table: Names) -> str | None:
    """The name of somebody of whom the rest says something that names do, the most terms first."""
    terms = {form for term in rest for form in (term, term.removesuffix("s"))}
    fits = [(len(phrase), -i, behind) for i, (phrase, behind) in enumerate(DESCRIBED) if phrase <= terms]
    for _, _, behind in sorted(fits, reverse=True):
        for name in (f"{who} {behind}", f"{PERSON} {behind}", behind, f"{behind} {who}", f"{WOMAN} {behind}"):
            if name.casefold() in table.names:
                return table.names[name.casefold()]
    return None


def _plain(term: str, who: str, rest: Iterable[str]) -> str:
    if OLD & frozenset(rest):
        return {PERSON: "older person"}.get(who, f"old {who}")
    young = YOUNG.get(term, who)
    return who if young == "girl" else young  # as which it draws girls
