"""Corruptions: what is said is what is done, and what is linear is inverted as linear algebra says."""

from __future__ import annotations

import io

import pytest
import torch
from pictures import photo
from PIL import Image

from fastdiffusion import corruptions
from fastdiffusion.corruptions import CORRUPTIONS, LearnedBlur, covers, parse
from fastdiffusion.corruptions.blurs import disk, line, taps, transfer
from fastdiffusion.corruptions.marks import filled
from fastdiffusion.errors import DataError, InputError
from fastdiffusion.io.images import save_png, to_tensor
from fastdiffusion.noise import dct_matrix

SHAPE = (3, 24, 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the corruptions that read files are given."""
    folder = tmp_path_factory.mktemp("files")
    kernel = torch.zeros(1, 7, 7)
    kernel[0, 1:6, 3], kernel[0, 3, 3:6] = 1.0, 0.5
    save_png(2 * kernel - 1, folder / "kernel.png")
    hole = torch.full((1, 24, 32), -1.0)
    hole[:, 5:12, 8:20] = 1
    save_png(hole, folder / "hole.png")
    mark = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    mark.paste((255, 200, 0, 255), (4, 2, 16, 8))
    mark.save(folder / "mark.png")
    return folder


def said(name, files):
    """A corruption with what it cannot do without."""
    file = {"kernel": "kernel.png", "logo": "mark.png"}.get(name)
    return parse(name if file is None else f"{name} '{files / file}'")


def clean(n=2, shape=SHAPE):
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.randn(n, shape[0], 6, 8), shape[1:], mode="bicubic")
    return smooth.clamp(-1, 1).double()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_depend_on_the_seed_alone(name, files):
    x, what = clean(3), said(name, files)
    whole = what.on(SHAPE, [5, 6, 7]).forward(x)
    assert whole.shape[1:] == what.on(SHAPE, [5]).out
    assert torch.allclose(what.on(SHAPE, [6]).forward(x[1:2]), whole[1:2], atol=1e-6)
    assert torch.equal(what.on(SHAPE, [5, 6, 7]).forward(x), whole)
    assert what.on(SHAPE, [5]).lift(whole[:1]).shape == x[:1].shape


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_linear_ones_have_the_adjoint_and_the_pseudo_inverse(name, files):
    """<A x, v> = <x, A' v>, and the four conditions of Moore and Penrose on the range."""
    operator = said(name, files).on(SHAPE, [3, 4])
    if not operator.linear:
        with pytest.raises(InputError, match="not linear"):
            operator.adjoint(clean())
        return
    x, z = clean(), torch.randn(2, *SHAPE, dtype=torch.double)
    offset = operator.mean(torch.zeros_like(x))

    def A(v):
        return operator.mean(v) - offset

    def P(v):
        return operator.pinv(v + offset, 400)

    v = torch.randn_like(offset)
    assert float((A(x) * v).sum()) == pytest.approx(float((x * operator.adjoint(v)).sum()), abs=1e-9)
    assert torch.allclose(A(P(A(x))), A(x), atol=2e-3)  # A A+ A = A, but for singular values that are cut off
    u = P(A(z))  # A+ A is a projection, as far as gradients go in 400 steps where it has no closed form
    assert float((P(A(u)) - u).abs().mean()) < (1e-6 if operator.inverse is not None else 0.1)
    skew = float((P(A(x)) * z).sum()) - float((x * P(A(z))).sum())
    assert abs(skew) < 0.02 * float(x.norm() * z.norm())
    assert torch.allclose(operator.mean(operator.project(z, operator.mean(x))), operator.mean(x), atol=2e-2)


def test_a_blur_is_diagonal_in_the_cosine_basis():
    kernel = taps(torch.tensor([1.3], dtype=torch.double), 6)
    x, d = torch.randn(1, 1, 9, 1, dtype=torch.double), dct_matrix(9, torch.double)
    blurred = corruptions.blurs.convolve(x, kernel[:, :, None])
    assert torch.allclose(d @ blurred[0, 0], transfer(kernel, 9)[0, :, None] * (d @ x[0, 0]), atol=1e-12)


def test_blurs_keep_flat_images_and_their_kernels_sum_to_one(files):
    flat = torch.full((1, 3, 24, 32), 0.3)
    for text in ("blur 3", "motion 15 30", "defocus 5", f"kernel '{files / 'kernel.png'}'"):
        assert torch.allclose(parse(text).on(SHAPE, [0])(flat), flat, atol=1e-5), text
    assert float(disk(torch.tensor([3.0])).sum()) == pytest.approx(1)
    across = line(torch.tensor([9.0]), torch.tensor([0.0]))[0]
    assert float(across.sum()) == pytest.approx(1) and float(across[5].sum()) == pytest.approx(1, abs=1e-3)


def test_large_kernels_by_fourier_equal_small_ones_by_hand():
    x, kernel = torch.randn(2, 3, 12, 17), torch.rand(2, 5, 7)
    wide = corruptions.blurs.mirror(corruptions.blurs.mirror(x, 2, 2, 2), 3, 3, 3)
    slow = torch.stack([
        sum(kernel[i, a, b] * wide[i, :, 4 - a : 4 - a + 12, 6 - b : 6 - b + 17] for a in range(5) for b in range(7))
        for i in range(2)
    ])  # fmt: skip
    assert torch.allclose(corruptions.blurs.convolve(x, kernel), slow, atol=1e-4)


@pytest.mark.parametrize("colors", ["420", "422", "444"])
@pytest.mark.parametrize("quality", [5, 10, 30, 50, 90])
def test_jpeg_is_libjpegs(quality, colors):
    image = photo(83, 61, seed=3)
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=quality, subsampling={"420": 2, "422": 1, "444": 0}[colors])
    wanted, x = to_tensor(Image.open(memory))[None], to_tensor(image)[None]
    got = corruptions.jpeg(quality, colors)(x)
    assert float((got - wanted).abs().mean()) * 127.5 < 1.5
    assert float((got - x).square().mean()) == pytest.approx(float((wanted - x).square().mean()), rel=0.05, abs=3e-5)


def test_jpegs_cells_hold_the_original_and_the_gradient_passes():
    x = 0.3 * clean().float()
    operator = corruptions.jpeg(20, "444").on(SHAPE, [0, 0])
    y = operator(x)
    near = operator.nearest(y + 0.2 * torch.randn_like(y), y)
    assert float((operator(near) - y).abs().mean()) < 0.01
    assert float((operator.nearest(x, y) - x).abs().mean()) < 0.01  # what is inside stays
    at = x.clone().requires_grad_()
    operator(at).square().sum().backward()
    assert float(at.grad.abs().mean()) > 0.01


def test_learned_blur_finds_the_width():
    x = clean(1, (1, 40, 40)).float() + 0.2 * torch.randn(1, 1, 40, 40)
    y, blur = corruptions.blur(1.7)(x), LearnedBlur(0.6)
    optimizer = torch.optim.Adam(blur.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (blur(x) - y).square().mean().backward()
        optimizer.step()
    assert float(blur.sigma.detach()) == pytest.approx(1.7, rel=0.02)


def test_masks_cover_what_is_said_and_are_filled_from_around():
    operator = corruptions.mask(0.25).on((1, 40, 60), [0, 1])
    hole = operator.mean(torch.ones(2, 1, 40, 60)) == 0
    assert hole.flatten(1).float().mean(1).tolist() == pytest.approx([0.25, 0.25], abs=1e-3)
    slope = torch.linspace(-1, 1, 60).expand(2, 1, 40, 60)
    assert float((operator.lift(operator.mean(slope)) - slope).abs().mean()) < 0.05
    assert torch.equal(filled(slope, torch.zeros(2, 1, 40, 60)), torch.zeros_like(slope))


# ---- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "gray, blur 1.5, jpeg 30", "blur 0.5..3, jpeg 10..60", "blur", "downscale 2 area", "jpeg 30 444",
        "(blur 1..3 | noise 0.1), jpeg 40", "blur 2 | downscale 2, jpeg 20..95", "watermark '© me, 2024' 0.5",
        "mask 'my hole.png'", "mask hole.png", 'watermark "Don\'t copy" 0.5', "noise 1e-05..0.3",
    ],
)  # fmt: skip
def test_text_is_printed_as_it_was_read(text):
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_a_name_may_begin_with_a_number():
    assert parse("mask 2024-05-01.png") == parse("mask '2024-05-01.png'")


def test_python_and_text_say_the_same():
    made = corruptions.gray() >> corruptions.blur((0.5, 3)) >> corruptions.jpeg(30)
    assert made == parse("gray, blur 0.5..3, jpeg 30")
    assert corruptions.blur(2) | corruptions.noise(0.1) == parse("blur 2 | noise 0.1")
    assert corruptions.downscale(2, how="area") == parse("downscale x2 area")


def test_all_defaults_and_examples_can_be_said(files):
    for name in CORRUPTIONS:
        if name not in ("kernel", "logo"):
            assert parse(corruptions.example(name)).on(SHAPE, [0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("blurr 2", "Did you mean 'blur'"),
        ("blur 2 jpeg 30", "Put a comma before 'jpeg'"),
        ("blur 2,", "where the name of a corruption should stand"),
        ("blur 3..1", "from 0 to 64"),
        ("jpeg 30.5", "whole number"),
        ("jpeg 0", "from 1 to 100"),
        ("downscale 2..4", "cannot be a range"),
        ("(blur 2", "not closed"),
        ("blur 2) | gray", "goes on with"),
        ("gray 3", "takes no value"),
        ("blur $", "Cannot read '\\$'"),
        ("downscale 2 lanczos", "one of bicubic, area"),
        ("", "nothing more"),
    ],
)
def test_typos_are_told(text, told):
    with pytest.raises(InputError, match=told):
        parse(text)


def test_a_factor_that_does_not_divide_is_told():
    with pytest.raises(InputError, match="33x24 pixels do not divide by 2"):
        parse("downscale 2").on((3, 24, 33), [0])


@pytest.mark.parametrize("name", ["mask", "kernel", "logo"])
def test_a_file_that_is_not_there_is_named(name):
    with pytest.raises(DataError, match=f"Cannot read the {name} 'no.png': no such file"):
        parse(f"{name} far/no.png").on(SHAPE, [0])


def test_a_mask_of_another_size_is_told(files):
    with pytest.raises(InputError, match="The mask has 32x24 pixels and the image 40x24"):
        parse(f"mask '{files / 'hole.png'}'").on((3, 24, 40), [0])


@pytest.mark.parametrize(
    ("learned", "asked", "yes"),
    [
        ("blur 0.5..3", "blur 1.5", True),
        ("blur 0.5..3", "blur 4", False),
        ("blur 0.5..3, jpeg 10..60", "blur 1, jpeg 30", True),
        ("blur 0.5..3, jpeg 10..60", "jpeg 30", False),
        ("blur 0..3, jpeg 10..60", "jpeg 30", True),
        ("blur 0.5..3 | noise 0..1", "noise 0.2", True),
        ("blur 0.5..3 | noise 0..1", "noise 0.2 | blur 1", True),
        ("blur 0.5..3 | noise 0..1", "noise 0.2, blur 1", False),
        ("downscale 2", "downscale 4", False),
        ("downscale 2", "downscale 2 area", False),
        ("gray, blur 0..2, jpeg 20..100", "gray", True),
        ("mask 0.05..0.4", "mask hole.png", True),
        ("jpeg 5..95", "jpeg", True),
    ],
)
def test_what_a_model_covers(learned, asked, yes):
    assert covers(parse(learned), parse(asked)) is yes


def test_what_is_known():
    assert parse("gray, blur 1.5, jpeg 30").known and parse("mask hole.png").known
    for open_ in ("blur 1..2", "jpeg", "mask 0.2", "watermark 'A' 0.5", "blur 1 | blur 2"):
        assert not parse(open_).known, open_


def test_mixtures_take_each_part():
    texts = parse("blur 2 | jpeg 30 | gray").on(SHAPE, range(90)).text
    assert {t.split()[0] for t in texts} == {"blur", "jpeg", "gray"}
    assert min(sum(t.startswith(k) for t in texts) for k in ("blur", "jpeg", "gray")) > 15
