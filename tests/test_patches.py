"""Images of patches: looked up exactly, laid out in another order, and into holes."""

import pytest
import torch
import torch.nn.functional as F

from fastdiffusion import cli, patches, rearrange, restore
from fastdiffusion.errors import InputError
from fastdiffusion.io import metadata
from fastdiffusion.io.images import read_recipe, to_pil, to_uint8
from fastdiffusion.noise import generator
from fastdiffusion.patches import Patches
from fastdiffusion.tasks.rearrangement.rearrange import rearrange_steps
from fastdiffusion.tasks.restoration import patch_filling


def waves(h, w, across, color):
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    wave = torch.sin(6.283 * across * (x + 0.5 * y)) * 0.5
    return (wave * torch.tensor(color)[:, None, None]).clamp(-1, 1)[None]


WAVES, OTHER = waves(48, 64, 2, (0.6, 0.4, 0.2)), waves(56, 56, 9, (-0.9, 0.8, 0.9))


def test_an_image_of_its_own_patches_is_itself():
    known = Patches(WAVES, 7, 0)
    for stride, offset in ((1, 0), (3, 0), (3, 2), (5, 4)):
        made, inner = known.replaced(WAVES, stride, offset), (..., slice(7, -7), slice(7, -7))
        torch.testing.assert_close(made[inner], WAVES[inner], rtol=0, atol=1e-5)  # without what is beyond it


def test_patches_are_looked_up_both_ways():
    """Against every distance written down (Granot et al. 2022, eq. 2); in strips as in one piece."""
    x, style = WAVES[:, :, :20, :23], OTHER[:, :, :17, :19]
    rows = F.unfold(x, 5, stride=2)[0].T
    keys = F.unfold(style, 5)[0].T
    far = (rows[:, None] - keys).square().sum(2)
    found = keys[(far / (far.amin(0) + patches.USED)).argmin(1)]
    window = torch.hann_window(7, periodic=False)[1:-1]
    weights = (window[:, None] * window).flatten().repeat(3)
    total, share = (F.fold((v * weights).T[None], (19, 23), 5, stride=2) for v in (found, torch.ones_like(found)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patches, "AXES", 75)  # all of them
        made = Patches(style, 5, 0).replaced(x[:, :, :19], 2)
        torch.testing.assert_close(made, total / share, rtol=0, atol=1e-5)
        patched.setattr(patches, "STRIP", 20)
        torch.testing.assert_close(Patches(style, 5, 0).replaced(x[:, :, :19], 2), made, rtol=0, atol=1e-6)


def test_patches_of_a_larger_source_are_laid_out():
    """Where all patches stay, the result is the source itself, three times as large."""
    source = torch.rand(1, 3, 72, 96, generator=generator(0)) * 2 - 1
    small = F.interpolate(source, scale_factor=1 / 3, mode="area")
    made = Patches(small, 7, 0).replaced(small, 2, 1, source=source)
    inner = (..., slice(21, -21), slice(21, -21))
    assert made.shape == source.shape
    torch.testing.assert_close(made[inner], source[inner], rtol=0, atol=1e-5)


def test_a_part_alone_is_replaced_by_what_is_known():
    part = torch.zeros(48, 64, dtype=torch.bool)
    part[20:30, 30:40] = True
    known = Patches(WAVES, 7, 0, ~part, used=1e6)
    x = torch.where(part, torch.rand(WAVES.shape, generator=generator(1)), WAVES)
    made = known.replaced(x, 1, part=part)
    assert bool((made[:, :, part] != 0).all()) and not bool(made[:, :, :10].any())
    with pytest.raises(InputError, match="nothing to copy from"):
        Patches(WAVES, 7, 0, torch.zeros_like(part))


# ---- another layout -----------------------------------------------------------------------------------------------


DISCS = ((7, 14, 16, 0.9, -0.5, -0.5), (8, 40, 30, -0.6, 0.8, -0.4), (9, 22, 60, -0.7, -0.5, 0.9))


def blobs():
    """Discs of three colors on gray."""
    image = torch.full((3, 60, 80), 0.1)
    for radius, top, left, *color in DISCS:
        image = torch.where(disc(60, 80, top, left, radius), torch.tensor(color)[:, None, None], image)
    return image


def disc(h, w, top, left, radius):
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return (y - top) ** 2 + (x - left) ** 2 < radius**2


def test_an_image_is_laid_out_anew_of_what_it_has():
    image = blobs()
    made = rearrange(image, n=2, strength=1.0, seed=3)
    again = rearrange(image, n=1, strength=1.0, seed=4)
    assert made.images.shape == (2, 3, 60, 80) and made.names == ("image-rearranged-3", "image-rearranged-4")
    assert torch.equal(made.images[1], again.images[0])
    assert float((made.images[0] - made.images[1]).abs().mean()) > 0.05
    assert float((made.images[0] - image).abs().mean()) > 0.05
    colors = torch.cat([image.flatten(1).T.unique(dim=0)])
    off = torch.cdist(made.images[0].flatten(1).T, colors).amin(1)
    assert float((off < 0.05).float().mean()) > 0.9  # few colors that it did not have: nothing is blurred


def test_little_freedom_keeps_the_image():
    image = blobs()
    assert float((rearrange(image, n=1, strength=0.0).images[0] - image).abs().mean()) < 0.03


@pytest.mark.parametrize(("shape", "size"), [
    ((60, 80), "120x60"), ((60, 80), (16, 200)), ((16, 300), "40x64"), ((90, 300), 31), ((270, 40), None),
])  # fmt: skip
def test_any_shape_is_filled(shape, size):
    made = rearrange(waves(*shape, 3, (0.6, 0.4, 0.2))[0], n=1, size=size).images[0]
    wanted = {"120x60": (60, 120), "40x64": (64, 40), 31: (31, 31), None: shape}.get(size, size)
    assert tuple(made.shape[1:]) == wanted and bool(made.isfinite().all()) and float(made.std()) > 0.1


def test_steps_are_levels():
    steps = list(rearrange_steps(blobs(), n=1))
    assert [s.done for s in steps] == list(range(1, steps[0].of + 1)) and steps[0].of > 2
    assert steps[0].image.shape[2] < steps[-1].image.shape[2] == 80


@pytest.mark.parametrize(("change", "sentence"), [
    ({"strength": 1.5}, "from 0 to 1"), ({"n": 0}, "n must be"), ({"size": "8x90"}, "at least 16 pixels"),
    ({"size": "wide"}, "WIDTHxHEIGHT"),
])  # fmt: skip
def test_bad_numbers_of_a_layout(change, sentence):
    with pytest.raises(InputError, match=sentence):
        rearrange(blobs(), **change)


def test_the_command(tmp_path, capsys):
    to_pil(blobs()).convert("RGBA").save(tmp_path / "photo.png")
    photo = str(tmp_path / "photo.png")
    assert cli.main(["rearrange", photo, "-n", "2", "-o", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo-0.png", "photo-1.png"]
    assert metadata.source_type(read_recipe(tmp_path / "out" / "photo-1.png")) == metadata.COMPOSITE
    assert cli.main(["rearrange", photo, "-n", "2", "-o", "-"]) == 2
    both = [photo, str(tmp_path / "none.png"), str(tmp_path / "other.png"), "-n", "1", "-o", str(tmp_path / "both")]
    to_pil(blobs()).save(tmp_path / "other.png")
    assert cli.main(["rearrange", *both]) == 1  # and the others are made
    assert "1 of 3 images failed" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["other.png", "photo.png"]
    assert (
        cli.main(
            ["rearrange", str(tmp_path / "photo.png"), "--size", "64x64", "-n", "1", "-o", str(tmp_path / "a.png")]
        )
        == 0
    )
    assert "64x64 pixels" in capsys.readouterr().out


# ---- holes --------------------------------------------------------------------------------------------------------


def bricks(h=120, w=160):
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    row = y // 12
    joint = (y % 12 < 2) | ((x + 10 * (row % 2)) % 20 < 2)
    return to_uint8(torch.where(joint, 0.7, -0.3).expand(1, 3, -1, -1))[0]


def test_a_pattern_is_continued():
    image, hole = bricks(), disc(120, 160, 60, 80, 18)
    made = patch_filling.fill(torch.where(hole, 0, image), hole)
    assert torch.equal(made[:, ~hole], image[:, ~hole])
    off = (made[:, hole].float() - image[:, hole]).abs()
    assert float((off > 40).float().mean()) < 0.05  # the very bricks; a smooth filling is off nearly everywhere


def test_what_lies_in_the_hole_is_not_looked_at():
    image, hole = bricks(), disc(120, 160, 50, 40, 15)
    first, second = (patch_filling.fill(torch.where(hole, v, image), hole) for v in (0, 255))
    assert torch.equal(first, second)


@pytest.mark.parametrize("turns", range(4))
def test_nor_is_it_at_a_border_of_an_image_that_is_made_smaller(turns):
    """300 pixels are worked on at half the size, and 301 have to be filled up to be halved."""
    image, hole = bricks(201, 301), torch.zeros(201, 301, dtype=torch.bool)
    hole[60:120, -60:] = True
    image, hole = torch.rot90(image, turns, (1, 2)), torch.rot90(hole, turns)
    first, second = (patch_filling.fill(torch.where(hole, v, image), hole) for v in (0, 255))
    assert torch.equal(first, second)


def test_results_differ_by_seed_where_several_are_asked_for():
    image, hole = to_uint8(blobs()[None])[0], disc(60, 80, 30, 40, 12)
    made = [patch_filling.fill(image, hole, seed, differ=True) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_widths():
    hole = torch.zeros(50, 60, dtype=torch.bool)
    assert patch_filling.width(hole) == 0
    hole[10:15, 5:55] = True
    assert patch_filling.width(hole) == 5 and not patch_filling.fits(hole)
    hole[20:50, 20:50] = True  # to the border: beyond it nothing is known
    assert patch_filling.width(hole) >= 29 and patch_filling.fits(hole)
    assert not patch_filling.fits(~disc(50, 60, 5, 5, 3))


@pytest.mark.parametrize("hole", [disc(120, 160, 0, 0, 40), ~disc(120, 160, 60, 80, 15), disc(120, 160, 60, 80, 58)])
def test_holes_at_the_border_and_nearly_all_of_the_image(hole):
    made = patch_filling.fill(torch.where(hole, 0, bricks()), hole)
    assert float(made[:, hole].float().std()) > 20


def test_holes_that_are_far_apart_are_filled_each_on_its_own():
    image = bricks(120, 700)
    first, second = disc(120, 700, 60, 60, 18), disc(120, 700, 60, 640, 14)
    both = patch_filling.fill(torch.where(first | second, 0, image), first | second)
    for hole in (first, second):
        alone = patch_filling.fill(torch.where(hole, 0, image), hole)
        assert torch.equal(both[:, hole], alone[:, hole])


def test_what_fits_can_be_filled():
    """A long stripe: as little as is looked at beside it is a patch at the scale of the work."""
    hole = torch.zeros(300, 1500, dtype=torch.bool)
    hole[:, 700:720] = True
    assert patch_filling.fits(hole)
    made = patch_filling.fill(bricks(300, 1500), hole)
    assert float(made[:, hole].float().std()) > 20


@pytest.mark.parametrize("at", range(100, 104))
def test_what_fits_can_be_filled_wherever_it_lies(at):
    """A known stripe of 14 pixels at half the size has 7, or 6 and two halves."""
    hole = torch.ones(300, 300, dtype=torch.bool)
    hole[:, at : at + 14] = False
    assert not patch_filling.fits(hole)
    hole[:, at : at + 15] = False
    assert patch_filling.fits(hole)
    patch_filling.fill(bricks(300, 300), hole)


def test_who_asks_for_a_model_is_not_left_to_patches(tmp_path):
    image, hole = to_pil(bricks()), disc(120, 160, 60, 80, 18)
    to_pil(torch.where(hole, 1.0, -1.0)[None]).save(tmp_path / "wide.png")
    wide = f"inpaint '{tmp_path / 'wide.png'}'"
    assert restore(image, wide, self_ensemble=True).method == "supervised"
    with pytest.raises(InputError, match="posterior and steps do nothing where patches of the image fill the hole"):
        restore(image, wide, method="patches", steps=50, posterior="dps")
    assert restore(image, wide, seed=3).recipe["parameters"] == {"n": 1, "seed": 3}


def test_restore_takes_patches_for_wide_holes_only(tmp_path):
    image = to_pil(bricks())
    for name, hole in (("wide", disc(120, 160, 60, 80, 18)), ("thin", disc(120, 160, 60, 80, 5))):
        to_pil(torch.where(hole, 1.0, -1.0)[None]).save(tmp_path / f"{name}.png")
    wide, thin = f"inpaint '{tmp_path / 'wide.png'}'", f"inpaint '{tmp_path / 'thin.png'}'"
    done = restore(image, wide)
    assert done.method == "patches" == done.recipe["method"] and done.error == (0.0, 0.0)
    assert restore(image, thin).method == restore(image, wide, answer="mean").method == "supervised"
    assert restore(image, thin, method="patches").method == "patches"
    several = restore(image, wide, n=2)
    second = restore(image, wide, method="patches", answer="sample", seed=1)
    assert not torch.equal(*several.pixels) and torch.equal(several.pixels[1], second.pixels[0])
    assert "model" not in done.recipe
    with pytest.raises(InputError, match="give no mean"):
        restore(image, wide, method="patches", answer="mean")
    gray = restore(image.convert("L"), wide).to_pil()[0]
    assert gray.size == image.size
    with pytest.raises(InputError, match="fills holes, and nothing else"):
        restore(image, "jpeg 30", method="patches")
