"""The emoji scenes: what is held out is nowhere in training, and never changes."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from fastdiffusion import data
from fastdiffusion.data.emoji import holdout
from fastdiffusion.data.emoji.scenes import CLDR, composite
from fastdiffusion.data.emoji.translations import describe_background
from fastdiffusion.errors import InputError, MissingExtra

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def parts():
    try:
        return {part: data.load("emoji-scenes", part=part) for part in ("train", "designs", "compositions", "grounds")}
    except MissingExtra as error:
        pytest.skip(str(error))


def shown(scenes) -> set[tuple[str, str]]:
    return {(scenes.images.names[row.image], row.color) for row in scenes.rows}


def test_the_list_in_the_docs_is_what_the_rule_says(parts):
    listing = runpy.run_path(str(ROOT / "scripts" / "list-reserved"))["listing"]
    assert json.loads((ROOT / "docs" / "emoji-reserved.json").read_text()) == listing()


def test_no_part_shares_a_picture_with_training(parts):
    seen = shown(parts["train"])
    designs = {holdout.skinless(name) for name, _ in seen}
    for name, _ in shown(parts["designs"]):
        assert holdout.skinless(name) not in designs
    for name, _ in shown(parts["compositions"]):
        assert not any(other == name for other, _ in seen)
    assert not shown(parts["grounds"]) & seen
    assert all((name, "white") in seen for name, _ in shown(parts["grounds"]))  # the parts of it are known


def test_the_parts_of_a_held_out_skin_are_seen_elsewhere(parts):
    seen = {name for name, _ in shown(parts["train"])}
    designs = {holdout.skinless(name) for name in seen}
    skins = [name for name, _ in shown(parts["compositions"]) if holdout.skinless(name) not in holdout.COMPOSITIONS]
    assert len(skins) > 100 and all(holdout.skinless(name) in designs for name in skins)


def test_captions_say_the_color_and_never_a_held_out_name(parts):
    train = parts["train"]
    g = torch.Generator().manual_seed(0)
    rows = list(range(0, len(train), 23))
    captions = train.batch(rows, g).captions
    for row, caption in zip(rows, captions, strict=True):
        color = train.rows[row].color
        assert color == "white" or caption.endswith((f"on {color}", f"{color} background"))
    assert len(set(captions)) > 0.8 * len({train.caption(row) for row in rows})
    assert all(not holdout.phrase(other) for phrases in train.phrases for other in phrases.others)
    assert train.batch(rows, torch.Generator().manual_seed(0)).captions == captions


def test_scenes_are_named_in_many_languages_without_what_is_held_out(parts):
    named, train = data.load("emoji-polyglot", languages=["ja", "de"]), parts["train"]
    rows = list(range(0, len(train), 7))
    assert named.batch(rows[:9]).captions == train.batch(rows[:9]).captions  # English, where nothing is drawn
    said = named.annotations(rows, torch.Generator().manual_seed(0)).captions

    def name(i: int, language: str) -> str:
        picture, color = train.rows[i]
        return describe_background(named.names[language][picture], language, color)

    own = {language: {i: name(i, language) for i in rows} for language in named.names}
    colored = next(i for i in rows if train.rows[i].color == "blue")
    assert own["de"][colored].endswith("auf blauem Hintergrund")
    parts_of = {k: sum(text == names[i] for i, text in zip(rows, said, strict=True)) for k, names in own.items()}
    assert all(0.2 < count / len(rows) < 0.4 for count in parts_of.values())
    held = [i for i in rows if holdout.pair(train.images.names[train.rows[i].image], "ja")]
    assert held and not {own["ja"][i] for i in held} & set(named.texts(rows))
    alone = data.load("emoji-polyglot", english=1.0)
    g = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert alone.annotations(rows, g[0]).captions == train.annotations(rows, g[1]).captions
    with pytest.raises(InputError, match="english"):
        data.load("emoji-polyglot", english=2.0)
    with pytest.raises(InputError, match="no other language"):
        data.load("emoji-polyglot", languages=[])


def test_a_part_of_the_rows_knows_its_own_sources(parts):
    part = data.Subset(parts["train"], range(5, 60, 3))
    for i in range(len(part)):
        first = part.source(i)
        assert part.parent.rows[part.indices[first]] == part.parent.rows[part.indices[i]]
        assert part.source(first) == first and first <= i


def test_rows_that_show_the_same_have_one_source(parts):
    train = parts["train"]
    for row in range(0, len(train), 97):
        assert train.rows[train.source(row)] == train.rows[row] and train.source(train.source(row)) == train.source(row)


def test_a_ground_is_what_shines_through():
    pictures = torch.zeros(2, 4, 2, 2, dtype=torch.uint8)
    pictures[:, 0], pictures[1, 3] = 200, 255
    mixed = composite(pictures, torch.tensor([[10, 20, 30], [10, 20, 30]], dtype=torch.uint8))
    assert mixed[0, :, 0, 0].tolist() == [10, 20, 30] and mixed[1, :, 0, 0].tolist() == [200, 0, 0]


def test_skins_and_designs():
    assert holdout.skinless("1f469-1f3fb-200d-1f373") == "1f469-200d-1f373"
    assert holdout.skins("1f469-1f3fb-200d-2764-fe0f-200d-1f469-1f3ff") == ["1f3fb", "1f3ff"]
    assert not holdout.reserved("1f63b")  # the cat with heart eyes, which the README asks for


def test_bad_input():
    with pytest.raises(InputError, match="parts train"):
        data.load("emoji-scenes", part="everything")
    if not CLDR.exists():
        with pytest.raises(MissingExtra, match="unicode-cldr-core"):
            data.load("emoji-scenes")
