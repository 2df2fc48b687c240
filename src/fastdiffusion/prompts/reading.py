"""Everyday prompts in the words that a model knows: other names for its things, and what can be left out.

A word that no caption had has no meaning for a text encoder and disturbs the rest. So prompts are read before they are
encoded: letters that nobody sees and signs at the ends of words go, plurals and synonyms become the name that was
trained, and words that stay unknown are left out; each is said in a note. What has none of these passes bit for bit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from . import abroad, people
from .known import ARTICLES, EDGES, NARROW, PHRASE, SCENIC, Lists, Names, Token, forms, key, known_names
from .known import names as names
from .things import COLORS, COUNTS, SIZES, Things

_SHARED = "de da do das di du d del la le e y o el en am al st"
_FILLERS = """
beautiful pretty cute nice lovely delicious tasty yummy gorgeous awesome amazing adorable spooky cool fancy detailed
highly masterpiece photorealistic realistic photograph photo hd 4k 8k uhd best quality very really please draw stunning
perfect simple trending artstation emoji emojis my your our his her their some this that
"""
_ABROAD = """
der die das den dem des ein eine einen einem einer eines sehr bitte zeichne zeichnen male mach ich möchte
el los las un una unos unas muy favor dibuja dibujar quiero uno gli molto bello bella disegna
les une des très joli jolie svp dessine dessiner um uma uns umas os muito desenhe quero het een en ett
"""
_GRAMMAR = """
is are am was were be being been it its it's i i'm he she they we he's she's they're that's there there's who which just
so too let's
"""
SHARED = frozenset(_SHARED.split())  # words of several languages, which are in names of places and say nothing of which
FILLERS = frozenset(_FILLERS.split())  # how good an image should be, and nothing of what it shows
GRAMMAR = frozenset(_GRAMMAR.split())  # what makes a sentence of things: "there is a cat", "a dog that is running"
ABROAD = frozenset(_ABROAD.split())  # idle words, in languages of the student encoder
_FLAGS = re.compile(r"\s+((?:--|—)[a-z][\w-]*(?:[ =][\w.:]+)?(?:\s+(?:--|—)[a-z][\w-]*(?:[ =][\w.:]+)?)*)\s*$", re.I)
IMAGES = r"(?:photo|photograph|picture|image|drawing|painting|illustration|icon|sketch|emoji|render|portrait|shot)"
_IMAGE_OF = re.compile(rf"(?:(?:a|an|the)\s+)?(?:\w+\s+)?{IMAGES}s?\s+of\s+(?:(?:a|an|the)\s+)?(?=\S)", re.IGNORECASE)
_ASKING = "draw|make|create|generate|paint|show|give|imagine|design"
_REQUEST = re.compile(  # "please draw me", "can you make", "I'd like"
    r"(?:please\s+)?(?:(?:can|could|would|will)\s+you\s+(?:please\s+)?|i(?:'d|’d|\s+would)?\s+(?:want|need|like)\s+"
    rf"(?:to\s+see\s+|you\s+to\s+)?)?(?:(?:{_ASKING})\s+(?=(?:me|us|a|an|the|some)\s))?(?:(?:me|us)\s+)?",
    re.IGNORECASE,
)
_BACKGROUND = re.compile(r"\s+on\s+(?:an?\s+)?[^\W\d_]+(?:\s+background)?$")
_REAL = frozenset({"photo", "photograph", "photorealistic", "realistic", "4k", "8k", "hd", "uhd"})


class Reading(NamedTuple):
    """A prompt as it is encoded.

    Attributes:
        text: For the encoder.
        origins: The characters (start, end) of the prompt that each character of ``text`` stands for.
        notes: What was changed, a sentence each.
        unknown: Words that no caption had.
    """

    text: str
    origins: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def interpret(text: str, lists: Lists, student: Lists | None = None, emoji: bool = False) -> Reading:
    """A text in words that an encoder lists.

    Args:
        text: Without signs of the prompt language.
        lists: Of the encoder.
        student: Of its student encoder, for other languages. Texts that are mostly the student's pass as they are.
        emoji: Use the table of emoji names.
    """
    if emoji and (flags := _FLAGS.search(text)):
        without = interpret(text[: flags.start()], lists, student, emoji)
        note = f"{flags[1]}: left out. Options stand outside the prompt: fastdiffusion sample --help lists them."
        return without._replace(notes=(*without.notes, note))
    visible = [i for i, sign in enumerate(text) if _visible(text, i, sign)]
    clean = "".join(text[i] for i in visible)
    whole = Reading(clean, tuple((i, i + 1) for i in visible))
    table = known_names() if emoji else Names({}, {}, {}, {}, {})
    if (clearer := _clearer(clean, visible, lists, table)) is not None:
        return clearer
    if unicodedata.normalize("NFKC", clean).casefold().strip() in _exact(emoji) and lists(clean):
        return whole
    if emoji and (somebody := _somebody(clean, visible, lists, table)) is not None:
        return somebody
    tokens = list(_tokens(clean, emoji))
    if not emoji and all(lists(token.text) for token in tokens):
        return whole
    if _in_other_language(tokens, lists, student, table):
        assert student is not None
        if emoji and (english := _translated(clean, tokens, visible)) is not None:
            return _within(english, interpret(english.text, lists, None, emoji))
        strange = [token for token in tokens if not (student(token.text) or _wide(token.text))]
        idle = [token for token in strange if token.text.casefold() in ABROAD]
        unread = tuple(token.text for token in strange if token not in idle)
        if idle and len(idle) < len(tokens):
            whole = Reading(*_rejoined(clean, [token for token in tokens if token not in idle], visible))
        notes = _unread(unread, table, left=False)
        if emoji and unread and len(tokens) > 2:
            notes += ("In languages other than English this model knows names, not sentences.",)
        return whole._replace(notes=notes, unknown=unread)
    unlisted = any(_strange(token.text, lists, table) for token in tokens)
    if emoji and student and unlisted and (english := _translated(clean, tokens, visible)) is not None:
        return _within(english, interpret(english.text, lists, None, emoji))  # what the student was never shown
    changed = _Changes(lists, table)
    kept = changed.made(clean, tokens)
    if not any(lists(token.text) and re.search(r"[^\W_]", token.text) and not _says_nothing(token) for token in kept):
        strange = tuple(term for token in tokens if not lists(token.text) and (term := key(token.text)) not in ARTICLES)
        return whole._replace(notes=_unread(strange, table, left=False), unknown=strange)
    if [*kept] == [Token(m[0], m.start(), m.end()) for m in re.finditer(r"\S+", clean)]:
        return whole._replace(notes=changed.notes())
    made = Reading(*_rejoined(clean, kept, visible), changed.notes(), tuple(changed.left))
    better = _clearer(made.text, range(len(made.text)), lists, table)
    return made if better is None else _within(made, better)


def _says_nothing(token: Token) -> bool:
    """Whether a word alone names nothing: what is left of "a knight in armor"."""
    return key(token.text) in ARTICLES | NARROW | SIZES


def _clearer(clean: str, visible: Sequence[int], lists: Lists, table: Names) -> Reading | None:
    """A name that stands alone, but for an article and a background, by another that the model draws better."""
    tokens = list(_tokens(clean, strip=True))
    end = _end(clean)
    first = int(len(tokens) > 1 and key(tokens[0].text) in ARTICLES)
    things = [token for token in tokens[first:] if token.start < end]
    name = table.clearer.get(key(" ".join(token.text for token in things)))
    if name is not None and first and name.startswith(f"{tokens[0].text.upper()} "):
        first, things = 0, [tokens[0], *things]  # the A of "A button" is no article
    named = " ".join(token.text for token in things)
    if name is None or not lists(name):
        return None
    articles = [token if lists(token.text) else token._replace(text="a") for token in tokens[:first]]  # "an"
    kept = [*articles, Token(name, things[0].start, things[-1].end), *tokens[first + len(things) :]]
    same = key(named) == key(name)  # but for parentheses
    notes = () if same else (f"{named!r} is read as {name!r}, which this model draws better.",)
    return Reading(*_rejoined(clean, kept, visible), notes)


def _start(text: str) -> int:
    """Where a text's things begin: behind "please draw me a picture of"."""
    request = _REQUEST.match(text)
    asked = 0 if request is None else request.end()
    prefix = _IMAGE_OF.match(text, asked)
    return asked if prefix is None else prefix.end()


def _end(clean: str) -> int:
    """Where a text's things end and a background, "on blue", begins."""
    found = _BACKGROUND.search(clean)
    return len(clean) if found is None or not COLORS & set(key(found[0]).split()) else found.start()


def _somebody(clean: str, visible: Sequence[int], lists: Lists, table: Names) -> Reading | None:
    """A person, by the name that is nearest to all that describes them."""
    start, end = _start(clean), _end(clean)
    tokens = [token for token in _tokens(clean, strip=True) if token.start >= start]
    own = [token for token in tokens if token.start < end]
    terms = [term for token in own for term in key(token.text).split() or [token.text]]
    terms = [
        "and" if term in ("&", "+") else term
        for term in terms
        if term not in (FILLERS - people.IDLE) | (GRAMMAR - {"who", "that"})
    ]
    if any(token.text.endswith(",") for token in own) or (name := people.person(terms, table)) is None:
        return None
    drawn = table.clearer.get(key(name), name)
    if not lists(drawn):
        return None
    raw = clean[own[0].start : own[-1].end]
    notes = () if key(raw) == key(drawn) else (f"{raw!r} is read as {name!r}, the nearest that this model knows.",)
    kept = [Token(drawn, own[0].start, own[-1].end), *tokens[len(own) :]]
    return Reading(*_rejoined(clean, kept, visible), notes)


def _translated(clean: str, tokens: list[Token], visible: Sequence[int]) -> Reading | None:
    """A phrase of another language in English, where it is no name in that language and all its words are known."""
    tokens = [piece for token in tokens for piece in _pieces(token)]
    parts = abroad.translated([key(token.text) for token in tokens], forms)
    if parts is None:
        return None
    english = [Token(p.english, tokens[p.first].start, tokens[p.last - 1].end) for p in parts if p.english]
    text, origins = _rejoined(clean, english, visible)
    return Reading(text, origins, (f"{clean.strip()!r} is read as {text!r}.",))


def _pieces(token: Token) -> Iterator[Token]:
    """The words of a token, where it is of a language that writes them together."""
    terms, start = abroad.split(key(token.text)) if _wide(token.text) else [], token.start
    if "".join(terms) != token.text:  # a sign became another or several
        yield token
        return
    for term in terms:
        yield Token(term, start, start + len(term))
        start += len(term)


def _within(outer: Reading, inner: Reading) -> Reading:
    """The reading of a reading's text."""
    covered = [outer.origins[a:b] for a, b in inner.origins]  # in another order, where colors changed places
    places = [(min(a for a, _ in each), max(b for _, b in each)) if each else (0, 0) for each in covered]
    return inner._replace(origins=tuple(places), notes=(*outer.notes, *inner.notes))


def _rejoined(clean: str, kept: Iterable[Token], visible: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of tokens, and its characters' origins in the prompt; ``visible`` are those of ``clean``."""
    out, origins = "", list[tuple[int, int]]()
    for token in kept:
        start, end = visible[token.start], visible[token.end - 1] + 1
        same = token.text == clean[token.start : token.end]
        added = (" " if out else "") + token.text
        origins += [(start, start)] * (len(added) - len(token.text))
        origins += [(visible[i], visible[i] + 1) for i in range(token.start, token.end)] if same else (
            [(start, end)] * len(token.text)
        )  # fmt: skip
        out += added
    return out, tuple(origins)


def _visible(text: str, i: int, sign: str) -> bool:
    """Not a format character: only Persian and Indic scripts write joiners, between their letters."""
    if unicodedata.category(sign) != "Cf":
        return True
    return sign in "\u200c\u200d" and 0 < i < len(text) - 1 and not (text[i - 1].isascii() or text[i + 1].isascii())


@cache
def _exact(emoji: bool) -> frozenset[str]:
    names = [name.casefold() for name in known_names().names.values()] if emoji else []
    return frozenset(article + name for name in names for article in ("", "a ", "an ", "the "))


def _tokens(text: str, strip: bool) -> Iterator[Token]:
    """Words without the signs at their ends; a comma between words stays."""
    found = [Token(m[0], m.start(), m.end()) for m in re.finditer(r"\S+", text)]
    for i, (term, start, end) in enumerate(found):
        core = term
        if strip:
            folded = unicodedata.normalize("NFKC", term)
            folded = folded if len(folded) == len(term) else term
            edges = EDGES + ("," if i == len(found) - 1 else "")
            first, last = len(folded) - len(folded.lstrip(edges)), len(folded.rstrip(edges))
            if first >= last:
                continue
            core, start, end = term[first:last], start + first, start + last
        yield Token(core, start, end)


def _wide(text: str) -> bool:
    return any(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _strange(text: str, lists: Lists, table: Names) -> bool:
    """Whether a word is none that the encoder lists, none that means nothing, and no other form of these."""
    if (lists(text) and not _wide(text)) or key(text) in FILLERS | SIZES | ARTICLES | table.everyday.keys():
        return False
    return not any(lists(form) and form in table.names for form in forms(key(text)))


def _in_other_language(tokens: list[Token], lists: Lists, student: Lists | None, table: Names) -> bool:
    """Whether a text is in a language of the student encoder: its words there are as many as the encoder's own."""
    if student is None:
        return False
    theirs = [
        token.text
        for token in tokens
        if (student(token.text) or _wide(token.text)) and _strange(token.text, lists, table)
    ]
    other_script = any("LATIN" not in unicodedata.name(s, "LATIN") for text in theirs for s in text if s.isalpha())
    own = [token for token in tokens if lists(token.text) and token.text.casefold() not in SHARED]
    return other_script or (bool(theirs) and len(theirs) >= len(own))


class _Changes:
    """What becomes of the words of a text, and the notes about it."""

    def __init__(self, lists: Lists, table: Names):
        self.lists, self.table = lists, table
        self.replaced: dict[str, str] = {}
        self.idle: list[str] = []
        self.left: list[str] = []
        self.things, self.real, self.scene = 0, False, False
        self.known = Things(lists, table, self.replaced, self.idle)

    def made(self, text: str, tokens: list[Token]) -> list[Token]:
        """The words that the encoder lists."""
        if self.table.names:
            tokens = self._without_fillers(text, tokens)
            tokens = self._named(self.known.simpler(self.known.alone(self.known.respaced(tokens))))
        content = [token for token in tokens if key(token.text) not in ARTICLES]
        tokens = [kept for token in tokens if (kept := self._listed(token)) is not None]
        while tokens and (self.left or self.idle) and tokens[-1].text.casefold() in NARROW:  # "a castle on a [hill]"
            tokens.pop()
        if tokens and self.idle and tokens[-1].text.endswith(",") and tokens[-1].text != ",":
            tokens[-1] = tokens[-1]._replace(text=tokens[-1].text[:-1], end=tokens[-1].end - 1)
        scenic = any(key(token.text) in SCENIC for token in content)
        self.scene = self.things > 2 or (scenic and self.things > 1) or (len(content) > 3 and bool(self.left))
        if self.table.names:
            tokens = self._whole(tokens)
        for i, (article, after) in enumerate(pairwise(tokens)):
            before = text[article.end :].split()[:1] == [text[after.start :].split()[0]]
            if article.text in ("a", "an") and not (before and after.text == text[after.start : after.end]):
                tokens[i] = article._replace(
                    text="an" if after.text[:1].lower() in "aeiou" and self.lists("an") else "a"
                )
        return tokens

    def notes(self) -> tuple[str, ...]:
        """A sentence for each kind of change."""
        notes = [
            f"{term!r} is read as {name!r}, "
            + ("which looks the same." if name.startswith("flag of ") else "the nearest that this model knows.")
            for term, name in self.replaced.items()
        ]
        if self.idle:
            notes.append(f"{', '.join(self.idle)}: left out, since it does not name what to draw.")
        if self.known.around:
            notes.append(
                f"{', '.join(map(repr, self.known.around))}: left out, since this model draws a thing by itself."
            )
        if any(key(term) in COUNTS for term in self.idle):
            notes.append("This model draws one of a thing, however many are asked for.")
        notes += _unread(tuple(self.left), self.table)
        if self.table.names and (self.real or self.scene):
            notes.append("This model draws single emoji on a plain background: neither photographs nor whole scenes.")
        return tuple(notes)

    def _without_fillers(self, text: str, tokens: list[Token]) -> list[Token]:
        if key(text) in self.table.everyday.keys() | self.table.search.keys():
            return tokens
        start = _start(text)
        kept = [token for token in tokens if token.start >= start]
        dropped = [token for token in tokens if token not in kept]
        rest = [token for token in kept if key(token.text.rstrip(",")) not in FILLERS | GRAMMAR]
        if not any(key(token.text) not in ARTICLES for token in rest):
            return tokens
        dropped += [token for token in kept if token not in rest]
        terms = [token.text.rstrip(",") for token in dropped]
        self.real = any(term.casefold() in _REAL for term in terms)
        self.idle += [term for term in terms if term.casefold() not in ARTICLES | {"of"}]
        if dropped and rest[-1].text.endswith(","):
            rest[-1] = rest[-1]._replace(text=rest[-1].text[:-1], end=rest[-1].end - 1)
        return rest

    def _named(self, tokens: list[Token]) -> list[Token]:
        """Phrases of the table in place of those that it translates; names stay, the longest first."""
        done, i = list[Token](), 0
        while i < len(tokens):
            for n in range(min(PHRASE, len(tokens) - i), 0, -1):
                terms = tokens[i : i + n]
                if n > 1 and key(terms[0].text) in ARTICLES:
                    continue
                phrase, raw = key(" ".join(p.text for p in terms)), " ".join(p.text for p in terms)
                if phrase in self.table.names and self.lists(raw):
                    done += terms
                    self.things += 1
                    break
                flag = n > 1 and "flag" in (key(terms[0].text), key(terms[-1].text))
                # "flag of the United States": each word was taught, of other things
                name = None if self.lists(raw) and not flag else self.known.meant(phrase)
                if name is not None:
                    comma = "," * raw.endswith(",")
                    self.replaced[raw.rstrip(",")] = name
                    done.append(Token(name + comma, terms[0].start, terms[-1].end))
                    self.things += 1
                    break
            else:
                n = 1
                done.append(tokens[i])
            i += n
        return done

    def _whole(self, tokens: list[Token]) -> list[Token]:
        """A text that is no name, but as a whole another name for one, with an article and a background at most."""
        first = int(len(tokens) > 1 and key(tokens[0].text) in ARTICLES)
        joined = " ".join(token.text for token in tokens[first:])
        behind = _BACKGROUND.search(joined)
        inner = joined[: behind.start()] if behind else joined
        n, phrase = len(inner.split()), key(inner)
        clearer = self.table.clearer.get(phrase) if self.idle or self.replaced else None
        if clearer is None and (phrase in self.table.names or inner in self.replaced.values()):
            return tokens
        name = None if self.left else clearer or self.known.meant(phrase, search=True)
        if name is None:
            return tokens
        terms = tokens[first : first + n]
        if clearer is None and (len(terms) < n or " ".join(token.text for token in terms) != inner):
            return tokens
        self.replaced[inner] = name
        return [*tokens[:first], Token(name, terms[0].start, terms[-1].end), *tokens[first + n :]]

    def _listed(self, token: Token) -> Token | None:
        if self.lists(token.text):
            return token
        term = key(token.text)
        if term in ARTICLES:
            return token._replace(text="a") if self.lists("a") else None
        for form in forms(term):
            if self.lists(form) and len(form) > 2:
                self.replaced[term] = form
                return token._replace(text=form + "," * token.text.endswith(","))
        spelled = get_close_matches(term, (name for name in self.table.names if " " not in name), 1, 0.88)
        if len(term) > 4 and spelled and self.lists(spelled[0]) and not re.fullmatch(f"{IMAGES}s?", term):
            self.replaced[term] = spelled[0]
            return token._replace(text=spelled[0] + "," * token.text.endswith(","))
        self.left.append(term)
        return None


def _unread(terms: tuple[str, ...], table: Names, left: bool = True) -> tuple[str, ...]:
    """The note about words that no caption had, with the nearest names."""
    if not terms:
        return ()
    near = list(dict.fromkeys(name for term in terms for name in _near(term, table)))[:3]
    hint = f" The nearest that it knows: {', '.join(near)}." if near else ""
    if not near and table.names:
        hint = " Search what it knows with: fastdiffusion names WORD."
    what = "left out" if left else "it may ignore it"
    return (f"The model was not trained on {', '.join(terms)}: {what}.{hint}",)


def _near(term: str, table: Names) -> list[str]:
    """Names that share the word, or are spelled much like it."""
    terms = set(term.split())
    return [name for name in table.find(term, 5) if terms & set(key(name).split()) or _alike(term, key(name))]


def _alike(term: str, name: str) -> bool:
    return SequenceMatcher(None, term, name).ratio() > 0.75
