"""Networks: any size, silent at first, deaf to what is masked, and no checkerboards, seams or shifts of their own."""

import json

import pytest
import torch
import torch.nn.functional as F

from fastdiffusion import nets
from fastdiffusion.errors import InputError
from fastdiffusion.nets import NETS, adopt, build
from fastdiffusion.nets.layers import Attention, Down, Shuffle, attend, attend_linear, fourier, icnr_
from fastdiffusion.nets.presets import PRESETS
from fastdiffusion.types import Cond

SIZES = [(4, 4), (5, 9), (7, 4), (8, 8), (13, 27)]
SMALL = {
    "unet": {"width": 16, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8},
    "dit": {"width": 32, "depth": 3, "head": 8, "patch": 2, "long_skips": True},
}
VARIANTS = {
    "unet": {},
    "unet-patch": {"patch": 2, "refine": 8, "blur": 1.0, "learn_blur": True},
    "unet-plain": {"scale_shift": False, "rescale": False, "linear": True, "skips": False},
    "unet-patch3": {"updown": False, "patch": 3, "blur": 0.7},
    "dit": {},
    "dit-refine": {"refine": 8, "patch": 4},
    "dit-linear": {"linear": True, "long_skips": False},
}


def make(name, **keywords):
    net = name.split("-")[0]
    spec = PRESETS[name] if name in PRESETS else {"name": net, **SMALL[net], **VARIANTS.get(name, {})}
    return build({**spec, "in_channels": 2, "out_channels": 2, **keywords})


def woken(net, seed=0):
    """The net with random parameters in place of its zeros, so that every path carries something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.3 / p[0].numel() ** 0.5, generator=generator)
    return net.eval()


def noisy(b=2, c=2, size=(8, 8), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, c, *size, generator=generator), torch.rand(b, generator=generator) * 2.7 - 1.6


@pytest.mark.parametrize("name", [*PRESETS, *VARIANTS])
def test_any_size_and_channels(name):
    net = woken(make(name, in_channels=3, out_channels=5))
    for size in SIZES if "base" not in name else SIZES[1:2]:
        x, c_noise = noisy(1, 3, size)
        with torch.no_grad():
            y = net(x, c_noise)
        assert y.shape == (1, 5, *size) and bool(y.isfinite().all()) and float(y.std()) > 0


@pytest.mark.parametrize("name", [*PRESETS, *VARIANTS])
def test_zero_at_first(name):
    x, c_noise = noisy()
    assert not make(name, classes=3)(x, c_noise, Cond(label=torch.tensor([0, -1]))).any()


@pytest.mark.parametrize("name", VARIANTS)
def test_label(name):
    net = woken(make(name, classes=3))
    x, c_noise = (t.expand(4, *t.shape[1:]) for t in noisy(1))
    with torch.no_grad():
        none, no_class, first, second = (
            *net(x, c_noise)[:1],
            *net(x, c_noise, Cond(label=torch.tensor([-1, 0, 1, 1])))[:3],
        )
    assert torch.allclose(none, no_class, atol=1e-6)
    assert not torch.allclose(no_class, first, atol=1e-4) and not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_noise_level_and_augmentation_are_heard(name):
    net = woken(make(name, augment=4))
    x, c_noise = noisy(1)
    with torch.no_grad():
        y = net(x, c_noise)
        assert not torch.allclose(y, net(x, c_noise + 0.02), atol=1e-5)
        assert torch.allclose(y, net(x, c_noise, Cond(augment=torch.zeros(1, 4))), atol=1e-6)
        assert not torch.allclose(y, net(x, c_noise, Cond(augment=torch.ones(1, 4))), atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_of_8_is_8_of_1(name):
    net = woken(make(name, classes=3, context=6))
    x, c_noise = noisy(8, size=(9, 6))
    words = torch.randn(8, 4, 6)
    cond = Cond(label=torch.arange(8) % 4 - 1, emb=words, mask=torch.rand(8, 4) < 0.5)
    with torch.no_grad():
        whole = net(x, c_noise, cond)
        parts = torch.cat([net(x[i : i + 1], c_noise[i : i + 1], cond[i : i + 1]) for i in range(8)])
    assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_masked_words_have_no_influence(name):
    net = woken(make(name, context=6))
    x, c_noise = noisy(2)
    words, mask = torch.randn(2, 5, 6), torch.tensor([[True, True, False, False, False], [False] * 5])
    other = torch.where(mask[..., None], words, 100 * torch.randn(2, 5, 6))
    with torch.no_grad():
        y = net(x, c_noise, Cond(emb=words, mask=mask))
        assert torch.allclose(y, net(x, c_noise, Cond(emb=other, mask=mask)), atol=1e-6)
        silent = net(x, c_noise)
        shorter = net(x[:1], c_noise[:1], Cond(emb=words[:1, :2]))
    assert torch.allclose(y[1], silent[1], atol=1e-6), "a row without a visible word equals no words"
    assert torch.allclose(y[:1], shorter, atol=1e-5), "a mask equals a shorter text"
    assert not torch.allclose(y[0], silent[0], atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name):
    net = woken(make(name, classes=3, augment=2, context=6)).train()
    x, c_noise = noisy(4, size=(9, 9))
    cond = Cond(label=torch.tensor([0, 1, 2, -1]), augment=torch.randn(4, 2), emb=torch.randn(4, 3, 6))
    (net(x, c_noise, cond) * torch.randn(x.shape)).sum().backward()
    silent = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", [*PRESETS, *VARIANTS, *NETS])
def test_configuration_survives_json(name):
    with torch.device("meta"):
        one = make(name, classes=2) if name not in NETS else build({"name": name})
        kind = PRESETS[name]["name"] if name in PRESETS else name.split("-")[0]
        two = build({"name": kind, **json.loads(json.dumps(one.config))})
    assert one.config == two.config == json.loads(json.dumps(one.config))
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in two.state_dict().items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_state_moves_to_a_twin(name):
    one, two = woken(make(name, classes=2), 0), woken(make(name, classes=2), 1)
    two.load_state_dict(one.state_dict())
    x, c_noise = noisy()
    assert torch.equal(one(x, c_noise), two(x, c_noise))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "unnet"}, "Did you mean 'unet'"),
        ({"name": "os.system"}, "No net named"),
        ({"name": ["unet"]}, "No net named"),
        ({}, "No net named"),
        ({"name": "unet", "widht": 3}, "Did you mean 'width'"),
        ({"name": "unet", "self": 3}, "No unet option"),
        ({"name": "unet", "width": 0}, "whole number from 1"),
        ({"name": "unet", "width": "64"}, "got '64'"),
        ({"name": "unet", "width": 1e9}, "whole number"),
        ({"name": "unet", "width": 10**12}, "whole number"),
        ({"name": "unet", "width": True}, "whole number"),
        ({"name": "unet", "linear": 1}, "true or false"),
        ({"name": "unet", "dropout": float("nan")}, "from 0 to 1"),
        ({"name": "unet", "blocks": 3}, "a list"),
        ({"name": "unet", "blocks": [10**9]}, "a list"),
        ({"name": "unet", "blocks": [1] * 10**5}, "a list"),
        ({"name": "unet", "blocks": [1]}, "one number per level"),
        ({"name": "unet", "multiples": [], "blocks": []}, "one number per level"),
        ({"name": "unet", "multiples": [0, 1, 1]}, "one number per level"),
        ({"name": "dit", "depth": 10**9}, "whole number"),
        ({"name": "dit", "width": 50, "head": 16}, "do not divide into 3 heads"),
        ({"name": "dit", "width": None}, "got None"),
    ],
)
def test_a_bad_configuration_is_refused_in_one_sentence(spec, words):
    with pytest.raises(InputError, match="(?s)" + words.replace("[", r"\[")) as error:
        build(spec)
    assert len(str(error.value)) < 10**6


def test_adopt_takes_what_fits_and_says_so():
    teacher, pupil = woken(make("unet", classes=3)), make("unet", classes=3, out_channels=1)
    matched = adopt(pupil, teacher.state_dict(), "encoder.")
    assert matched.taken and not matched.shape and not matched.left and "tail.up.conv.weight" in matched.unused
    assert all(torch.equal(p, teacher.get_parameter("encoder." + k)) for k, p in pupil.encoder.named_parameters())
    assert adopt(pupil, teacher.state_dict()).shape == ["tail.up.conv.weight", "tail.up.conv.bias"]
    assert "2 of another shape (tail.up.conv.weight, tail.up.conv.bias)" in str(adopt(pupil, teacher.state_dict()))
    with pytest.raises(InputError, match="No tensor of the checkpoint fits"):
        adopt(pupil, {"foreign": torch.zeros(1)})


# ---- artefacts ------------------------------------------------------------------------------------------------


def symmetrise(net, patch):
    """Make every filter symmetric under transposition, patches and subpixels included."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name == "stem.conv.weight":
                w = p.unflatten(1, (-1, patch, patch))
                p.copy_(((w + w.permute(0, 1, 3, 2, 5, 4)) / 2).flatten(1, 3))
            elif name == "tail.up.conv.weight":
                w = p.unflatten(0, (-1, patch, patch))
                p.copy_(((w + w.permute(0, 2, 1, 3, 5, 4)) / 2).flatten(0, 2))
            elif p.ndim == 4:
                p.copy_((p + p.mT) / 2)
    return net


@pytest.mark.parametrize("name", ["unet", "unet-patch", "unet-plain", "unet-patch3"])
@pytest.mark.parametrize("size", [(7, 12), (9, 5), (16, 11)])
def test_rows_and_columns_are_treated_alike(name, size):
    """With symmetric filters, the transposed picture gives the transposed answer, whatever must be padded and cut."""
    net = woken(make(name))
    net = symmetrise(net, net.config["patch"])
    x, c_noise = noisy(1, size=size)
    with torch.no_grad():
        assert torch.allclose(net(x, c_noise).mT, net(x.mT, c_noise), atol=1e-5)


def test_padding_leaves_the_inside_alone():
    """Cutting a picture to an odd size changes the answer near the cut only."""
    x = torch.randn(1, 4, 21, 21)
    for down in (Down(), Down(1.0)):
        whole, cut = down(x), down(x[..., :19, :19])
        assert cut.shape[-1] == 10 and torch.allclose(whole[..., :8, :8], cut[..., :8, :8], atol=1e-6)
        assert torch.allclose(down(torch.ones(1, 1, 7, 7)), torch.ones(1, 1, 4, 4), atol=1e-6), "no dark border"


def checkerboard(y, factor):
    """The part of a picture's variance that is inside its factor x factor cells."""
    y = y.detach()
    cells = F.interpolate(F.avg_pool2d(y, factor), scale_factor=factor)
    return float((y - cells).square().mean() / (y - y.mean()).square().mean())


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_icnr_starts_without_checkerboard(factor):
    x = torch.randn(4, 8, 12, 12)
    shuffle = Shuffle(8, 6, factor)
    icnr = checkerboard(shuffle(x), factor)
    torch.nn.init.kaiming_uniform_(shuffle.conv.weight, a=5**0.5)
    assert icnr < 0.01 * checkerboard(shuffle(x), factor)
    spread = shuffle.conv.weight.std()
    assert float(icnr_(shuffle.conv.weight, factor).detach().std()) == pytest.approx(float(spread), rel=0.1)


def pictures(n=32, size=33):
    """Noise with a 1/f spectrum, as natural pictures have."""
    f = torch.fft.fftfreq(size).square()
    spectrum = torch.fft.fft2(torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(0)))
    return torch.fft.ifft2(spectrum / (f[:, None] + f).clamp(min=1 / size**2).sqrt()).real


def shift_error(down):
    """How much the half of a shifted picture differs from the shifted half, both shown at full size."""
    x = pictures()

    def show(y):
        return F.interpolate(y, scale_factor=2, mode="bilinear")

    straight, shifted = show(down(x[..., :32])), show(down(x[..., 1:33]))
    return (straight[..., 5:-4] - shifted[..., 4:-5]).square().mean().sqrt()


def test_blur_pool_is_consistent_under_shifts():
    strided, mean = shift_error(lambda x: x[..., ::2, ::2]), shift_error(Down())
    assert shift_error(Down(1.0)) < 0.7 * mean < 0.7 * strided


def test_blur_is_learnable():
    down = Down(0.5, learn=True)
    optimizer = torch.optim.Adam(down.parameters(), 0.05)
    first = float(shift_error(down))
    for _ in range(30):
        optimizer.zero_grad()
        shift_error(down).backward()
        optimizer.step()
    assert float(shift_error(down)) < 0.7 * first and float(down.log_sigma.exp()) > 1


def test_noise_features_resolve_the_whole_range():
    """Neighbouring noise levels, 5 % apart, differ; distant ones are not alike."""
    c_noise = torch.linspace(-1.6, 1.1, 217)
    for c in (c_noise, torch.linspace(0.002, 0.998, 250)):
        f = F.normalize(fourier(c, 64))
        likeness = f @ f.T
        assert float(likeness.diagonal(1).max()) < 0.9999
        assert float(likeness.triu(40).max()) < 0.8


def test_linear_attention_is_softmax_attention_over_one_key():
    """With one key both return its value; and linear attention is blind to masked keys."""
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 1, 8), torch.randn(2, 3, 1, 8)
    assert torch.allclose(attend(q, k, v), attend_linear(q, k, v), atol=1e-6)
    mask = torch.tensor([True, True, False])[None, None, None]
    k, v = torch.randn(2, 3, 3, 8), torch.randn(2, 3, 3, 8)
    for f in (attend, attend_linear):
        assert torch.allclose(f(q, k, v, mask), f(q, k[:, :, :2], v[:, :, :2]), atol=1e-6)


def test_every_attention_goes_through_the_one_function(monkeypatch):
    seen = []

    def spy(q, k, v, attn_mask=None):
        seen.append((q.shape[-2], k.shape[-2]))
        return v.mean(-2, keepdim=True).expand(q.shape)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for name in ("unet", "dit"):
        net = make(name, context=6)
        net(*noisy(), Cond(emb=torch.randn(2, 5, 6)))
        count = sum(isinstance(m, Attention) for m in net.modules())
        assert len(seen) == count and (16, 16) in seen and (16, 6) in seen
        seen.clear()


def test_a_preset_with_changes():
    """What is ablated can be reached from the command line, as ``--net "unet-small blur=learned"``."""
    plain = nets.presets.PRESETS["unet-small"]
    assert nets.specification("unet-small") == plain and nets.specification(plain) == plain
    assert nets.specification("unet-small blur=learned") == {**plain, "blur": 1.0, "learn_blur": True}
    changed = nets.specification("unet-small multiples=1,2 attention=none rescale=false dropout=0.5 width=16")
    assert changed == {
        **plain, "multiples": [1, 2], "attention": [], "rescale": False, "dropout": 0.5, "width": 16,
    }  # fmt: skip
    built = nets.build({**nets.specification("unet-tiny blur=learned"), "in_channels": 1, "out_channels": 1})
    assert any("log_sigma" in name for name, _ in built.named_parameters())


@pytest.mark.parametrize(("text", "message"), [
    ("unet-smal", "Did you mean 'unet-small'"),
    ("", "No net named ''"),
    ("unet-small blurr=1", "Did you mean 'blur'"),
    ("unet-small blur", "blur lacks a value"),
    ("unet-small blur=much", "blur must be from 0 to 8"),
    ("unet-small width=0", "width must be a whole number"),
    ("unet-small rescale=perhaps", "rescale must be true or false"),
    ("unet-small multiples=1,x", "multiples must be a list"),
])  # fmt: skip
def test_changes_that_make_no_net(text, message):
    with pytest.raises(InputError, match=message):
        nets.specification(text)
