"""People in everyday prompts: who it is, how they feel and look, what they do, by the nearest name of the emoji model.

Of people it knows names that hold all of it ("woman frowning", "man red hair", "woman biking"), each of which it draws
well, and no others: of "a sad girl" or "a man with glasses" something between all that these terms belong to is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .known import ARTICLES, NARROW, SCENIC, Names, forms
from .things import AWAY, COLORS, COUNTS, SIZES

WOMAN, MAN, PERSON = "woman", "man", "person"
_CALLED = {
    WOMAN: "woman lady girl female gal mom mum mommy mother wife daughter sister aunt schoolgirl businesswoman "
    "girlfriend bride",
    MAN: "man guy boy male gentleman dad daddy father husband son brother uncle dude fellow schoolboy businessman "
    "boyfriend groom",
    PERSON: "person human adult child kid teenager somebody someone parent boss friend neighbor neighbour colleague "
    "guest patient customer",
}
CALLED = {term: who for who, terms in _CALLED.items() for term in terms.split()}
YOUNG = {"girl": "girl", "schoolgirl": "girl", "daughter": "girl", "boy": "boy", "schoolboy": "boy", "son": "boy",
         "child": "child", "kid": "child"}  # fmt: skip
RETIRED = 60  # years, from where on somebody is drawn as old
OLD = frozenset({"old", "older", "elderly", "aged", "senior", "aging", "ancient"})
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
    "lifting weights": "lifting weights, weightlifting, weights, dumbbell, weightlifter",
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
    "gesturing OK": "gesturing ok, saying ok",
    "gesturing NO": "gesturing no, saying no",
    "feeding baby": "feeding baby, holding baby, baby, newborn, toddler",
    "in bed": "sleeping, in bed, asleep",
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
    "technologist": "technologist, working computer, computer, laptop, programming, coding, programmer, typing, "
    "gaming, gamer, hacker",
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
    "mountain biking": "mountain biking, mountain biker, mountain bike",
    "horse racing": "riding horse, horse riding",
    "ice skate": "ice skating, skater",
    "selfie": "selfie",
    "in steamy room": "sauna, steam room",
    "in suit levitating": "levitating",
    "supervillain": "supervillain, villain",
    "pregnant": "pregnant, expecting",
    "fencing": "fencing, fencer",
    "skier": "skiing, skier",
    "snowboarder": "snowboarding, snowboarder",
    # how they look
    "with crown": "crown",
    "with bunny ears": "bunny ears",
    "with veil": "veil, wedding dress, bridal, bride",
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
    "scared, tired, sick, ill, bored, heartbroken",
    "pouting": "angry, mad, annoyed, grumpy, furious, pouting, cross, shouting, screaming",
    "shrugging": "confused, unsure, shrugging, puzzled, doesn't know, don't know, no idea",
    "facepalming": "embarrassed, ashamed, facepalming, frustrated",
}  # fmt: skip
PHRASES = {phrase: behind for behind, phrases in _DESCRIBED.items() for phrase in phrases.split(", ")}
DESCRIBED = [(frozenset(phrase.split()), behind) for phrase, behind in PHRASES.items()]
# What no name says, and every image of a person looks like
_IDLE = """
happy smiling cheerful joyful friendly young beautiful pretty cute handsome nice lovely laughing excited proud calm shy
brave kind sweet hair haired long short dark black brown straight wearing having has who is that clothes standing
looking strong drunk dizzy surprised shocked crazy weird normal teenage
"""
IDLE = frozenset(_IDLE.split())
# Terms that are people by what they do
_ROLES = """
doctor nurse surgeon medic professor pupil graduate chef painter guitarist musician programmer chemist lawyer gardener
plumber welder builder cop officer wizard witch sorcerer magician dancer ballerina runner jogger swimmer surfer climber
golfer weightlifter footballer gymnast acrobat juggler cyclist spy agent player teacher student cook singer artist
scientist pilot judge farmer mechanic firefighter astronaut detective fencer gamer hacker biker skater villain
"""
ROLES = frozenset(_ROLES.split())
# What comes before somebody and makes no other thing of them
BEFORE = frozenset(term for terms, _ in DESCRIBED for term in terms) | IDLE | OLD | SIZES | COLORS | COUNTS
_DOES = """
eats drinks plays reads sits stands walks runs jumps dances sings rides drives wears works teaches cooks holds looks has
goes sleeps cries smiles laughs paints swims climbs waves says thinks kisses hugs loves
"""
# What comes behind somebody and is about them
AFTER = NARROW | SCENIC | AWAY | IDLE | OLD | frozenset(_DOES.split()) | {"who", "that", "next", "not", "as", "alone"}
MOODS = ("frowning", "pouting", "shrugging", "facepalming")
GRAND = {"grandma": WOMAN, "granny": WOMAN, "grandmother": WOMAN, "grandpa": MAN, "granddad": MAN, "grandfather": MAN}
INFANTS = frozenset({"baby", "newborn", "toddler"})
TOGETHER = frozenset({"kissing", "kiss", "hugging", "cuddling", "hug", "love", "married", "wrestling"})
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
    terms = _without_years([term for term in terms if term not in ARTICLES])
    phrase = " ".join(terms)
    if not terms or (terms != [*ROLES & {phrase}] and (phrase in table.everyday or phrase in table.search)):
        return None
    if "family" in terms[: FAMILY + 1]:
        behind = terms[terms.index("family") + 1 :][:1]
        return table.names.get("family man woman girl boy") if not behind or _goes_on(behind[0]) else None
    plainly = next((i for i, term in enumerate(terms) if called(term) and not ROLES & {term, *forms(term)}), None)
    at = next((i for i, term in enumerate(terms) if called(term)), None) if plainly is None else plainly
    if at is None or (len(terms) < 2 and (plainly is not None or phrase in table.names)):
        return None
    if phrase in table.names:
        return table.names[phrase]
    who, before, after = called(terms[at]), terms[:at], terms[at + 1 :]
    assert who is not None
    if any(term.endswith(("'s", "s'")) for term in terms):  # what belongs to them
        return None
    if any(_is_another_thing(term, terms[at], table) for term in before) or not _describes(who, before, after, table):
        return None
    if before[-1:] == ["baby"]:
        return "baby"
    if several := _several(who, terms, at, table):
        return several
    made = _described(who, terms if plainly is None else [*before, terms[at], "with", *after], table)
    old = bool(OLD & set(before)) and (made or "").endswith(MOODS)  # no name is of both
    return made if plainly is None or (made and not old) else _plain(terms[at], who, before)


def _without_years(terms: list[str]) -> list[str]:
    """An age in years, and of grandparents, as young or old: it is no number of people."""
    if len(terms) > 1:
        terms = [one for term in terms for one in (["old", GRAND[term]] if term in GRAND else [term])]
    for i in range(1, len(terms) - 1):
        if terms[i] in ("year", "years") and terms[i + 1] == "old":
            age = "old" if terms[i - 1].isdigit() and int(terms[i - 1]) >= RETIRED else "young"
            return [*terms[: i - 1], age, *terms[i + 2 :]]
    return terms


def _is_another_thing(term: str, somebody: str, table: Names) -> bool:
    """Whether a term before somebody makes something else of them: a snow man, a fire man."""
    if f"{term}{somebody}" in table.names or f"{term}{somebody}" in table.everyday:
        return True
    if term in BEFORE or term in NARROW or called(term):
        return False
    return term in table.names or term in table.everyday or f"{term}{somebody}" in table.closed


def _goes_on(term: str) -> bool:
    """Whether a term behind somebody is about them, and no thing that is named after them: a wizard hat."""
    return term in AFTER or (term.endswith(("ing", "ed")) and len(term) > 4) or called(term) is not None


def _describes(who: str, before: Sequence[str], after: Sequence[str], table: Names) -> bool:
    """Whether what follows somebody is about them."""
    if after[:1] == ["and"] and not any(called(term) or term in INFANTS for term in after):
        return False  # two things, of which none is left out
    moody = any(PHRASES.get(term) in MOODS for term in before)
    return not after or _goes_on(after[0]) or moody or _described(who, after, table) is not None


def _several(who: str, terms: Sequence[str], at: int, table: Names) -> str | None:
    """The name of two people, or of a parent with children."""
    others = [term for term in terms[at + 1 :] if called(term) and not ROLES & {term, *forms(term)}]
    children = [YOUNG[form] for term in others for form in (term, *forms(term)) if form in YOUNG]
    parent = terms[at] in PARENTS or (terms[at] in (WOMAN, MAN) and terms[at + 1 : at + 2] == ["with"])
    if others and len(children) == len(others) and parent:
        small = ["boy" if child == "child" else child for child in children]
        small *= 2 if len(small) == 1 and (others[0] not in YOUNG or COUNTS & set(terms[at:])) else 1
        return table.names.get(f"family {who} {' '.join(sorted(small, reverse=True))}")
    many = terms[at] not in CALLED and not ROLES & {terms[at], *forms(terms[at])}
    if not (many or COUNTS & set(terms[:at]) or (others and {"and", *TOGETHER} & set(terms))):
        return None
    if many and OLD & set(terms[:at]):
        return _plain(terms[at], who, terms[:at])
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
    fits = []
    for part in _parts(rest, table):
        terms = {form for term in part for form in (term, term.removesuffix("s"))}
        fits += [(len(phrase), -i, behind) for i, (phrase, behind) in enumerate(DESCRIBED) if phrase <= terms]
    for _, _, behind in sorted(fits, reverse=True):
        for name in (f"{who} {behind}", f"{PERSON} {behind}", behind, f"{behind} {who}", f"{WOMAN} {behind}"):
            if name.casefold() in table.names:
                return table.names[name.casefold()]
    return None


def _parts(rest: Iterable[str], table: Names) -> list[list[str]]:
    """What belongs together: from one "with" to the next "and", without what describes other things ("police car")."""
    terms, parts = [*rest], list[list[str]]([[]])
    for term, after in zip(terms, [*terms[1:], ""], strict=True):
        if term in ("and", "with", "in", "on", "at"):
            parts.append([])
        thing = after in table.names or after in table.everyday
        if not thing or after in AFTER or called(after) or term.endswith("ing") or " ".join((term, after)) in PHRASES:
            parts[-1].append(term)
    return parts


def _plain(term: str, who: str, rest: Iterable[str]) -> str:
    if OLD & frozenset(rest):
        return {PERSON: "older person"}.get(who, f"old {who}")
    return who if YOUNG.get(term) == "girl" else YOUNG.get(term, who)  # girls are drawn best as women
