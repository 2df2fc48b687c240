"""Things of a prompt, and what describes them: read without what the emoji model cannot draw."""

from __future__ import annotations

from typing import NamedTuple

from .known import ARTICLES, NARROW, PHRASE, SCENIC, Lists, Names, Token, forms, key

_SIZES = """
big little small tiny huge large giant gigantic enormous massive mini tall short long fat thin skinny chubby old young
new fresh ripe funny silly single
"""
_LOOKS = """
happy sad angry mad crying smiling laughing sleepy sleeping tired hungry scared scary spooky crazy grumpy cheerful
excited lonely proud brave shy friendly evil dangerous wild hot cold warm iced fresh burning shiny bright dark dirty
clean broken empty full ancient modern fast slow loud quiet soft heavy wet dry sliced cut peeled chopped fried grilled
baked boiled roasted raw cooked spicy rusty dusty human frozen juicy melted melting colorful colourful wooden
"""
_FLAVORS = """
chocolate vanilla strawberry cheese apple lemon cherry banana chicken beef pumpkin peanut honey
"""
_PARTS = """
slice slices piece pieces bit bits chunk chunks wedge scoop loaf bunch bundle pile stack heap bowl plate dish cup glass
mug jar can tin box bag basket pair couple head group herd flock lot lots plenty load loads dozen dozens handful
carton packet pack jug
"""
_COUNTS = """
two three four five six seven eight nine ten eleven twelve 2 3 4 5 6 7 8 9 10 11 12 many several few multiple dozen
countless
"""
_COLORS = "red orange yellow green blue purple violet pink black white brown grey gray golden"
SIZES = frozenset(_SIZES.split())  # size, age and looks, which no image of an emoji has
LOOKS = frozenset(_LOOKS.split())  # moods and states, of which a thing that has no name with them shows nothing
FLAVORS = frozenset(_FLAVORS.split())  # before another thing: "chocolate ice cream"
COUNTS = frozenset(_COUNTS.split())  # what a model that draws one of each thing cannot follow
PARTS = frozenset(_PARTS.split())  # "a slice of pizza", "a bowl of cherries": what there is a part or an amount of
SLICES = frozenset({"slice", "slices", "piece", "pieces", "chunk", "chunks"})  # also behind it: "pizza slice"
YOUNG = frozenset({"baby", "newborn"})
COLORS = frozenset(_COLORS.split())
SHAPES_COLORS = frozenset({"brown", "grey", "gray"})  # before another thing, a heart or a square comes of it
_AWAY = "after before during around above against across along into onto off up down out without where when"
AWAY = frozenset(_AWAY.split())
WRITTEN = 3  # words that a name may be written in
SHORTEST = 3  # letters of each: "car rot" is one thing, and "a corn" another
COLORED = 2  # a thing with as many names that begin with a color has them in others, too


class Thing(NamedTuple):
    """Words that name something: how many, and its name."""

    length: int
    name: str


class Things:
    """The known things of a text.

    Attributes:
        replaced: What was read as something else, and as what.
        idle: What was left out.
        around: What was left out of what is beside a thing, or what it does.
    """

    def __init__(self, lists: Lists, table: Names, replaced: dict[str, str], idle: list[str]):
        self.lists, self.table, self.replaced, self.idle = lists, table, replaced, idle
        self.around: list[str] = []

    def meant(self, phrase: str, search: bool = False) -> str | None:
        """The name of a thing that a phrase is another name or form of; None if it is none."""
        for form in (phrase, phrase.replace(" the ", " "), *forms(phrase)):  # "flag of the United States"
            name = self.table.everyday.get(form) or (self.table.search.get(form) if search else None)
            name = name or (self.table.names.get(form) if form != phrase else None)
            if name is not None and self.lists(name):
                return name
        return None

    def respaced(self, tokens: list[Token]) -> list[Token]:
        """Names whose words are written together, or apart: "policecar", "sun glasses", "tooth-brush"."""
        done, i = list[Token](), 0
        while i < len(tokens):
            n = next((n for n in range(min(WRITTEN, len(tokens) - i), 0, -1) if self._closed(tokens[i : i + n])), 0)
            if n == 0:
                done.append(tokens[i])
                i += 1
                continue
            name = self._closed(tokens[i : i + n])
            raw = " ".join(token.text for token in tokens[i : i + n])
            self.replaced[raw.rstrip(",")] = name
            done.append(Token(name + "," * raw.endswith(","), tokens[i].start, tokens[i + n - 1].end))
            i += n
        return done

    def _closed(self, tokens: list[Token]) -> str:
        """The name that is meant by words which are none as they are written; "" if there is none."""
        raw = " ".join(token.text for token in tokens).rstrip(",")
        terms = key(raw).split()
        if key(tokens[0].text) in ARTICLES or "," in raw or key(raw) in self.table.names:
            return ""
        if len(tokens) == 1 and self.lists(raw):
            return ""
        if self.meant(key(raw), search=True) or any(len(term) < SHORTEST or term in COLORS for term in terms):
            return ""
        together = "".join(terms)
        for form in (together, *forms(together)):
            name = self.table.closed.get(form)
            if name is not None and self.lists(name):
                return name
        return ""

    def simpler(self, tokens: list[Token]) -> list[Token]:
        """Things without what comes before them that this model cannot draw, or with which it draws something else.

        That is their size, age and looks; the amount or part; that they are young; some colors. Names that hold such a
        word stay, and so do all words before what is no known thing.
        """
        if key(" ".join(token.text for token in tokens)) in self.table.search:  # all of it is another name
            return tokens
        done, i = list[Token](), 0
        while i < len(tokens):
            first = self._modified(tokens, i)
            thing = self._thing(tokens, first)
            if thing is None:
                done.append(tokens[i])
                i += 1
                continue
            colors, own = self._without_modifiers(tokens, i, first, thing, done)
            i = first + thing.length
            if i < len(tokens) and key(tokens[i].text) in SLICES and self._ends(tokens, i):
                self.replaced[" ".join(token.text for token in tokens[first : i + 1]).rstrip(",")] = thing.name
                comma = "," * tokens[i].text.endswith(",")
                own = [Token(thing.name + comma, tokens[first].start, tokens[i - 1].end)]
                i += 1
            done += [*colors, *own]
        return done

    def alone(self, tokens: list[Token]) -> list[Token]:
        """Things without where they are, what they do and what is with them, which come out as a bit of all of it.

        "A cat sitting on a chair" is a cat. What is joined by "and" stays, and so do a background of one color and
        names such as "heart with arrow", with articles or without.
        """
        kept, end, i = list[Token](), 0, 0
        while i < len(tokens) and not (end and self._leads_away(tokens, i)):
            thing, whole = self._thing(tokens, i), self._joined(tokens, i)
            longest = max((each for each in (whole, thing) if each is not None), default=None)
            if longest is None or (longest.length == 1 and self._is_idle(key(tokens[i].text))):
                kept.append(tokens[i])
                i += 1
                continue
            own = tokens[i : i + longest.length]
            i += longest.length
            comma = own[-1].text.endswith(",")
            bare = [key(token.text) for token in own if key(token.text) not in ARTICLES]
            if len(bare) < len(own) and key(longest.name) == " ".join(bare):
                own = [Token(longest.name + "," * comma, own[0].start, own[-1].end)]
            kept += own
            end = i
            if comma:
                return [*kept, *tokens[end:]]
        if not end or not self._leads_away(tokens, end):
            return [*kept, *tokens[i:]]
        last = self._background(tokens)
        if last > end:
            self.around.append(" ".join(token.text for token in tokens[end:last]))
        return [*kept, *tokens[max(last, end) :]]

    def _joined(self, tokens: list[Token], i: int) -> Thing | None:
        """The longest phrase at ``i`` that means a name, with articles within or without: "heart with an arrow"."""
        for n in range(len(tokens) - i, 1, -1):
            terms = [key(token.text) for token in tokens[i : i + n]]
            phrase = " ".join(term for term in terms if term not in ARTICLES)
            name = self.table.names.get(phrase) or self.meant(phrase, search=True) or self.meant(" ".join(terms), True)
            if terms[0] not in ARTICLES and name is not None and self.lists(name):
                return Thing(n, name)
        return None

    @staticmethod
    def _leads_away(tokens: list[Token], i: int) -> bool:
        """Whether the word at ``i`` begins what is no longer the thing before it."""
        term = key(tokens[i].text) if i < len(tokens) else ""
        return (
            term in (NARROW | SCENIC | AWAY) - {"and", "of"}
            or (term.endswith(("ing", "ed")) and len(term) > 4)
            or term in LOOKS
        )

    @staticmethod
    def _background(tokens: list[Token]) -> int:
        """Where a background of one color begins: "on blue", "on a blue background"."""
        for i in range(max(len(tokens) - 4, 0), len(tokens)):
            terms = [term for token in tokens[i:] if (term := key(token.text)) not in ARTICLES | {"background"}]
            if len(terms) == 2 and terms[0] == "on" and terms[1] in COLORS:
                return i
        return len(tokens)

    def _modified(self, tokens: list[Token], i: int) -> int:
        """Where the thing is that the words from ``i`` on describe; ``i`` itself if they do not."""
        part = False
        while i < len(tokens):
            term, thing = key(tokens[i].text), self._thing(tokens, i)
            after = {key(token.text) for token in tokens[i + 1 : i + 2]}
            describes = term in YOUNG | COLORS or self._is_idle(term)
            alone = not describes or self._ends(tokens, i) or after <= SLICES
            if thing is not None and (thing.length > 1 or alone):
                break
            if term in PARTS and key(" ".join(token.text for token in tokens[i + 1 : i + 2])) == "of":
                part, i = True, i + 2
            elif term == "half" or (part and term in ARTICLES):
                part, i = True, i + 1
            elif term in YOUNG | COLORS or self._is_idle(term):
                i += 1
            else:
                break
        return i

    def _without_modifiers(
        self, tokens: list[Token], i: int, first: int, thing: Thing, before: list[Token]
    ) -> tuple[list[Token], list[Token]]:
        """Of what describes the thing at ``first``, from ``i`` on, the colors that it may have; and the thing."""
        end, modifiers = first + thing.length, tokens[i:first]
        own = tokens[first:end]
        raw = " ".join(token.text for token in own).rstrip(",")
        called = {key(thing.name), key(raw)}
        kinds = [color for color in COLORS if any(f"{color} {name}" in self.table.names for name in called)]
        gone = SHAPES_COLORS if len(kinds) < COLORED else frozenset[str]()
        colors = [token for token in modifiers if key(token.text) in COLORS - gone]
        plain = [token for token in modifiers if self._is_idle(key(token.text))]
        dropped = [token for token in modifiers if token not in colors and token not in plain]
        self.idle += [token.text.rstrip(",") for token in plain]
        comma = "," * own[-1].text.endswith(",")
        name = Token(thing.name + comma, own[0].start, own[-1].end)
        if dropped:
            at = tokens.index(dropped[0])
            whole = " ".join(token.text for token in tokens[at:end]).rstrip(",")
            self.replaced[whole] = " ".join(
                [token.text for token in colors if token.start > dropped[0].start] + [thing.name]
            )
            return colors, [name]
        clash = bool(colors) and (len(kinds) >= COLORED or bool(COLORS & set(key(thing.name).split())))
        if self._other_name(tokens, end - 1, raw, before) and not clash:
            self.replaced[raw] = thing.name
            return colors, [name]
        return colors, own

    @staticmethod
    def _is_idle(term: str) -> bool:
        """Whether a word before a thing says how it looks, how many there are, or whose it is."""
        return (
            term in SIZES | COUNTS | LOOKS | FLAVORS
            or term.endswith("'s")
            or (term.endswith(("ing", "ed")) and len(term) > 5)
        )

    def _other_name(self, tokens: list[Token], last: int, raw: str, before: list[Token]) -> bool:
        """Whether words that end at ``last`` are another name for a thing, and neither a part of one nor a color."""
        behind = [key(token.text) for token in before[-2:] if key(token.text) not in ARTICLES][-1:]
        begins = not before or key(before[-1].text) in ARTICLES or self._ends([before[-1], tokens[last]], 0)
        begins = begins or behind[0] in NARROW or behind[0] in SCENIC
        other = raw not in self.table.names and key(raw) not in self.table.names and self.lists(raw)
        return other and begins and behind not in (["on"], ["in"], ["with"], ["of"]) and self._ends(tokens, last)

    def _thing(self, tokens: list[Token], i: int) -> Thing | None:
        """The longest phrase at ``i`` that is a name, or means one."""
        for n in range(min(PHRASE, len(tokens) - i), 0, -1):
            terms = [token.text for token in tokens[i : i + n]]
            phrase = key(" ".join(terms))
            if key(terms[0]) in ARTICLES or any(term.endswith(",") for term in terms[:-1]):
                continue
            name = self.table.names.get(phrase) or self.meant(phrase)
            if name is not None and self.lists(name):
                return Thing(n, name)
        return None

    @staticmethod
    def _ends(tokens: list[Token], i: int) -> bool:
        """Whether the word at ``i`` is the last one about its thing."""
        after = tokens[i + 1 : i + 2]
        return (
            not after
            or tokens[i].text.endswith(",")
            or after[0].text.casefold() in NARROW
            or key(after[0].text) in SCENIC
        )
