"""The language of prompts: what is written is read, and what is read does what it says."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastdiffusion import guidance, prompts, samplers, schedules
from fastdiffusion.errors import InputError
from fastdiffusion.nets.text import normalized
from fastdiffusion.nets.tokenizer import train
from fastdiffusion.prompts import Alternation, Part, Prompt, Switch, Text, Weighted, at, choose, parse, write
from fastdiffusion.samplers import adaptive
from fastdiffusion.types import Cond, Run

# ---- an encoder that can be checked by eye: a token per word, its state drawn from the word -------------------------


def state(word: str) -> torch.Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(int.from_bytes(word.encode()[:7], "big")))


def spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def encode(texts: list[str]) -> Cond:
    rows = [[state(text[a:b]) for a, b in spans(text)] for text in texts]
    n = max(map(len, rows)) or 1
    emb, mask = torch.zeros(len(texts), n, 6), torch.zeros(len(texts), n, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            emb[i, j], mask[i, j] = value, True
    return Cond(emb=emb, mask=mask, pooled=emb.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


def compiled(text: str | list[str], **options) -> prompts.Compiled:
    return prompts.compile([text] if isinstance(text, str) else text, encode, spans=spans, **options)


def cond_of(text: str, **options) -> Cond:
    return compiled(text, **options).stages[0].conds[0]


# ---- reading and writing --------------------------------------------------------------------------------------------

SIGNS = [
    "cat",
    "a dog",
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "{",
    "}",
    "\\",
    " AND ",
    " BREAK ",
    "1.3",
    "0.4",
    "x",
    " ",
    "é🐱",
]


def a_tree(draw: random.Random, depth: int = 0) -> tuple[prompts.Node, ...]:
    nodes: list[prompts.Node] = []
    for _ in range(draw.randint(1, 3)):
        kind = draw.randint(0, 4) if depth < 3 else 0
        if kind < 2:
            if not (nodes and isinstance(nodes[-1], Text)):
                nodes.append(Text("".join(draw.choices(SIGNS, k=draw.randint(1, 4)))))
        elif kind == 2:
            nodes.append(Weighted(a_tree(draw, depth + 1), draw.randint(0, 20) / 10))
        elif kind == 3:
            nodes.append(Switch(a_tree(draw, depth + 1), a_tree(draw, depth + 1), draw.randint(0, 10) / 10))
        else:
            nodes.append(Alternation((a_tree(draw, depth + 1), a_tree(draw, depth + 1))))
    return tuple(nodes)


@pytest.mark.parametrize("seed", range(200))
def test_what_is_written_is_read(seed):
    draw = random.Random(seed)
    parts = []
    for _ in range(draw.randint(1, 3)):
        texts = tuple((Text("x"), *a_tree(draw), Weighted((Text("y"),), 2.0)) for _ in range(draw.randint(1, 2)))
        texts = tuple((Text("x" + t[1].text), *t[2:]) if isinstance(t[1], Text) else t for t in texts)
        parts.append(Part(texts, draw.choice([1.0, 0.5, -2.0])))
    prompt = Prompt(tuple(parts)) if len(parts) > 1 else Prompt((Part(parts[0].texts),))
    assert parse(write(prompt)) == prompt
    assert parse(choose(write(prompt), seed)) == prompt  # nothing in it is a choice


def closed(text: str, brackets: str) -> bool:
    """Whether every bracket that is not an escaped sign has its partner."""
    waiting: list[str] = []
    for sign in re.sub(r"\\.", "", text, flags=re.DOTALL):
        at = brackets.find(sign)
        if at >= 0 and at % 2 == 0:
            waiting.append(brackets[at + 1])
        elif at >= 0 and (not waiting or waiting.pop() != sign):
            return False
    return not waiting


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_read_or_refused_with_a_sentence(seed):
    draw = random.Random(seed)
    accepted: list[str] = []
    refused: list[str] = []
    for _ in range(200):
        text = "".join(draw.choices(SIGNS, k=draw.randint(0, 12)))
        try:
            chosen = choose(text, seed)
            prompt = parse(chosen)
        except InputError as error:
            refused.append(str(error))
            continue
        assert parse(write(prompt)) == prompt  # outside of the try: what was written is never refused
        assert closed(text, "{}") and closed(chosen, "()[]"), text
        accepted.append(text)
    assert all(re.match(r"[A-Z].*\.$", reason, re.DOTALL) and len(reason) > 30 for reason in refused), refused
    assert len(accepted) > 10 and len(refused) > 100


def test_the_forms():
    line = at(parse("a (cat:1.3) with ((heart)) [eyes]").parts[0].texts[0], 0, 1)
    assert line.text == "a cat with heart eyes"
    assert [(line.text[a:b], round(w, 3)) for a, b, w in line.spans] == [("cat", 1.3), ("heart", 1.21), ("eyes", 0.909)]
    assert at(parse(r"  \(a\)   b  ").parts[0].texts[0], 0, 1).text == "(a) b"
    assert at(parse("(un)happy at 12:30").parts[0].texts[0], 0, 1) == ("unhappy at 12:30", ((0, 2, 1.1),))
    assert at(parse("[ratio 3:4 cat]").parts[0].texts[0], 0, 1).text == "ratio 3:4 cat"  # no moment: only text
    assert parse("BAND ANDROID BREAKFAST").parts[0].texts == ((Text("BAND ANDROID BREAKFAST"),),)
    many = parse("a cat:1.2 AND a (dog) BREAK a mat AND rain:-0.5")
    assert [(len(part.texts), part.weight) for part in many.parts] == [(1, 1.2), (2, 1.0), (1, -0.5)]


def test_words_change_during_the_run():
    items = parse("[cat:dog:0.4] in [the rain:0.5] [now::0.25] [a|b]").parts[0].texts[0]
    said = [at(items, call, 10).text for call in range(10)]
    assert said[:3] == ["cat in now a", "cat in now b", "cat in now a"]
    assert said[3:6] == ["cat in b", "dog in a", "dog in the rain b"]
    assert prompts.moments(parse("[cat:dog:0.4]"), 10) == [0, 4]


def test_choices_are_by_seed_and_even():
    drawn = [choose("{red|blue|{dark |light }green}", seed) for seed in range(600)]
    assert drawn[5] == choose("{red|blue|{dark |light }green}", 5)
    assert 150 < drawn.count("red") < 250 and 60 < drawn.count("dark green") < 140
    assert choose(r"\{a|b\} a|b", 0) == "{a|b} a|b"
    assert choose("a __color__ car", 0, {"color": ["red"]}) == "a red car"
    with pytest.raises(InputError, match=r"No wildcard named 'colour'\. Known: color"):
        choose("a __colour__ car", 0, {"color": ["red"]})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "prompt is empty"),
        (" ( [] ) ", "prompt is empty"),
        ("a (cat", r"'\(' at character 3 of 'a \(cat' is never closed"),
        ("a cat]", r"'\]' at character 6 of 'a cat\]' closes nothing"),
        ("a (cat]", r"'\]' at character 7"),
        ("(a:1e9)", "weight 1e9 .* must be from 0 to 10"),
        ("(a:-1)", "weight -1 .* must be from 0 to 10"),
        ("a:99 AND b", "weight 99 of 'a' must be from -10 to 10"),
        ("[a:b:7]", "moment 7 .* must be from 0 to 1"),
        ("(" * 30 + "a" + ")" * 30, "multiply to 17.4; at most 10"),
        ("(" * 5000, "brackets more than 50 deep"),
        ("(a AND b)", "AND joins whole texts"),
        ("word " * 2000, "2000 words; at most 500"),
        ("猫" * 10_001, "10,001 characters; at most 10,000"),
    ],
)
def test_bad_prompts_are_told(text, sentence):
    with pytest.raises(InputError, match=sentence):
        parse(text)


def test_bad_choices_and_lines_are_told():
    with pytest.raises(InputError, match="a brace that is never closed"):
        choose("{a|b", 0)
    with pytest.raises(InputError, match="closes a brace that is not open"):
        choose("a}", 0)
    with pytest.raises(InputError, match="prompt is empty"):
        prompts.several("\n \n")
    assert prompts.several("a cat\n\n a dog ") == prompts.several(["a cat", "a dog"]) == ["a cat", "a dog"]


# ---- compiling ------------------------------------------------------------------------------------------------------


def equal(a: Cond, b: Cond) -> bool:
    return all(torch.equal(x, y) for x, y in ((a.emb, b.emb), (a.mask, b.mask), (a.pooled, b.pooled)))


def test_weight_one_changes_no_bit():
    assert equal(cond_of("a (cat:1) with ((heart:1.0):1) eyes"), cond_of("a cat with heart eyes"))
    assert not equal(cond_of("a (cat:1.01) with heart eyes"), cond_of("a cat with heart eyes"))


def test_a_weight_moves_its_own_words_only():
    plain, heavy, gone = cond_of("a cat with eyes"), cond_of("a (cat:1.5) with eyes"), cond_of("a (cat:0) with eyes")
    moved = (heavy.emb != plain.emb).any(2)[0]
    assert moved.tolist() == [False, True, False, False]
    mean = plain.emb[0].mean(0)
    torch.testing.assert_close(heavy.emb[0, 1] - mean, 1.5 * (plain.emb[0, 1] - mean))
    torch.testing.assert_close(gone.emb[0, 1], mean)
    without = cond_of("a with eyes")
    torch.testing.assert_close(gone.pooled, without.pooled)  # 0 takes away all that the word added
    torch.testing.assert_close(heavy.pooled, plain.pooled + 0.5 * (plain.pooled - without.pooled))


def test_texts_that_break_parts_are_encoded_apart():
    both = cond_of("a cat BREAK a dog")
    torch.testing.assert_close(both.emb, torch.cat([encode(["a cat"]).emb, encode(["a dog"]).emb], 1))
    assert bool(both.mask.all())


def test_a_long_prompt_keeps_its_tail():
    words = [f"word{i}" for i in range(40)]
    whole, cut = cond_of(" ".join(words), limit=7), cond_of(" ".join(words[:-1]), limit=7)
    assert int(whole.mask.sum()) == 40 and int(cut.mask.sum()) == 39
    assert whole.emb[whole.mask].equal(torch.stack([state(w) for w in words]))
    weighed = cond_of(" ".join([*words[:30], "(word30:1.4)", *words[31:]]), limit=7)
    assert (weighed.emb != whole.emb).any(2).sum() == 1


def test_spans_of_what_a_tokenizer_normalizes():
    tokenizer = train([" straße", " strasse und haus", " haus haus"], 300, 1)
    found = prompts.aligned(tokenizer.spans, normalized)
    text = "STRASSE Haus"
    assert [(a, b) for a, b in found(text)][-1][1] == len(text)
    where = [set(range(a, b)) for a, b in found("Straße ﬁx Haus")]
    assert {"Straße ﬁx Haus"[i] for i in set.union(*where)} == set("StraßeﬁxHaus")


def linear(x: torch.Tensor, sigma: torch.Tensor, cond: Cond | None = None) -> torch.Tensor:
    """A denoiser that answers with what it was told."""
    assert cond is not None and cond.pooled is not None
    return x + cond.pooled.sum(1)[:, None]


X, SIGMA = torch.zeros(2, 3), torch.full((2,), 4.0)


def estimates(guided, x: torch.Tensor, evaluations: int = 4) -> list[torch.Tensor]:
    """Of each evaluation of a run, all at the same x and noise level."""
    now = Run((4.0,) * evaluations, evaluations)
    started, out = guidance.start(guided, now), []
    for now.index in range(evaluations):
        now.sigma = 4.0
        out.append(started(x, torch.full((len(x),), 4.0)))
    return out


def test_one_plain_prompt_is_classifier_free_guidance():
    made = compiled(["a cat", "two dogs here"], negative="bad (thing:1.2)")
    told = Cond(pooled=encode(["a cat", "two dogs here"]).pooled)
    wanted = guidance.cfg(linear, 3.0, Cond(pooled=cond_of("bad (thing:1.2)").pooled))(X, SIGMA, told)
    assert torch.equal(made.guide(linear, 3.0)(X, SIGMA), wanted)
    assert torch.equal(made.guide(linear)(X, SIGMA), linear(X, SIGMA, told))


def test_an_empty_prompt_says_nothing():
    nothing = encode([""]).pooled
    made = compiled(["", "a cat"], negative="bad").guide(linear, 2.0)(X, SIGMA)
    bad = cond_of("bad").pooled
    wanted = torch.stack([2 * t.sum() - bad.sum() for t in (nothing, encode(["a cat"]).pooled)])
    torch.testing.assert_close(made, wanted[:, None].expand(2, 3))


def test_prompts_joined_by_and_are_composed():
    made = compiled("a cat AND a dog:0.5").guide(linear, 2.0)(X[:1], SIGMA[:1])
    by_hand = guidance.compose(linear, [encode(["a cat"]), encode(["a dog"])], [2.0, 1.0])(X[:1], SIGMA[:1])
    torch.testing.assert_close(made, by_hand)


def test_a_batch_of_unlike_prompts_is_each_alone():
    texts = ["a cat AND [rain:snow:0.5]:0.5", "(two:1.2) dogs BREAK on a mat"]
    together = estimates(compiled(texts, evaluations=4, negative="bad").guide(linear, 2.0), X)
    for i, text in enumerate(texts):
        alone = estimates(compiled(text, evaluations=4, negative="bad").guide(linear, 2.0), X[:1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


@pytest.mark.parametrize(("evaluations", "first"), [(4, 2), (8, 4), (2, 1), (1, 1)])
def test_a_switch_happens_at_its_share_of_the_run(evaluations: int, first: int):
    """Where the run is as long as the prompt was compiled for, and where it is not."""
    guided = compiled("[cat:dog:0.5]", evaluations=4).guide(linear, 1.0)
    for i, estimate in enumerate(estimates(guided, X[:1], evaluations)):
        assert torch.equal(estimate, linear(X[:1], SIGMA[:1], encode(["cat" if i < first else "dog"])))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("text", ["a [cat|dog]", "[cat:dog:0.5]", "a [cat|dog] AND hat"])
def test_prompts_change_evaluation_by_evaluation_with_every_sampler(name: str, text: str):
    table = samplers.table(name, schedules.exponential(6))
    heard: list[torch.Tensor] = []

    def listening(x, sigma, cond=None):
        assert cond is not None and cond.pooled is not None
        heard.append(cond.pooled[0])
        return 0.5 * x

    guided = compiled(text, evaluations=table.nfe).guide(listening, 1.0)
    for _ in samplers.run(guided, X[:1], table, seeds=[0]):
        pass
    tree = parse(text).parts[0]
    wanted = [encode([at(tree.texts[0], i, table.nfe).text]).pooled[0] for i in range(table.nfe)]
    assert len(heard) == len(wanted) and all(map(torch.equal, heard, wanted))


def test_two_runs_in_two_threads_do_not_disturb_each_other():
    """One guided model, with prompts that change, momentum and a weak model, is walked through twice at once."""
    table, meeting = samplers.table("heun", schedules.exponential(6)), threading.Barrier(2)
    together = False

    def denoise(x, sigma, cond=None):
        if together:
            meeting.wait(20)  # each evaluation of one run falls between two of the other
        return (x + cond.pooled.sum(1)[:, None]) / (1 + sigma[:, None].square())

    def around(d):
        return guidance.autoguidance(d, guidance.apg(weak, 2.0, Cond(pooled=encode(["fog"]).pooled)), 1.5)

    def weak(x, sigma, cond=None):
        return 0.9 * denoise(x, sigma, cond)

    for text in ("a [cat|dog] on [a:the:0.3] mat", "a [cat|dog] AND rain:0.5"):
        made = compiled(text, evaluations=table.nfe, negative="bad")
        guided = made.guide(denoise, 3.0, guidance.apg, around if made.single else lambda d: d)

        def final(k, guided=guided):
            return samplers.final(samplers.run(guided, k * torch.ones(1, 3), table, seeds=[k]))

        together = False
        alone = [final(k) for k in (1, 2)]
        together = True
        with ThreadPoolExecutor(2) as pool:
            assert all(map(torch.equal, pool.map(final, (1, 2)), alone))


def test_a_prompt_that_changes_needs_to_know_how_long_the_run_is():
    with pytest.raises(InputError, match="evaluations=12"):
        compiled("[cat:dog:0.5]")
    guided = compiled("[cat:dog:0.5]", evaluations=4).guide(linear, 1.0)
    with pytest.raises(InputError, match="adaptive solver"):
        next(adaptive.rk45(guided, X[:1], 4.0, 1.0))
    next(adaptive.rk45(compiled("cat").guide(linear, 1.0), X[:1], 4.0, 1.0))


def test_a_weight_on_several_words_is_one_weight():
    plain, gone = cond_of("red cat on a mat"), cond_of("(red cat:0) on a mat")
    torch.testing.assert_close(gone.pooled, cond_of("on a mat").pooled)
    heavy = cond_of("(red cat:1.5) on a mat")
    torch.testing.assert_close(heavy.pooled, plain.pooled + 0.5 * (plain.pooled - gone.pooled))


def test_guidance_around_the_words_is_told_them():
    plain = compiled("cat", negative="fog")
    by_scale = plain.guide(linear, 3.0)
    around = compiled("cat").guide(linear, 1.0, around=lambda d: guidance.cfg(d, 3.0, encode(["fog"])))
    torch.testing.assert_close(around(X[:1], SIGMA[:1]), by_scale(X[:1], SIGMA[:1]))
    assert plain.single and not compiled("cat AND dog").single


def test_what_an_encoder_cannot_do_is_told():
    with pytest.raises(InputError, match="take no weights"):
        prompts.compile(["(a:1.2) b"], encode)
    prompts.compile(["a b"], encode)
    with pytest.raises(InputError, match="neither AND nor changes"):
        compiled("a", negative="[a:b:0.5]")


def test_reading_imports_nothing_heavy():
    code = "import sys; from fastdiffusion.prompts import parse; parse('a (b)'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
