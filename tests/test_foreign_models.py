"""A model of another family differs in its parts only: whatever a Model can do, it can do too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastdiffusion import models
from fastdiffusion.data import Images
from fastdiffusion.errors import InputError
from fastdiffusion.guidance import cfg
from fastdiffusion.guidance.classifier_free import replace_text
from fastdiffusion.models import Autoencoder, Conditioner, Model, card, save
from fastdiffusion.samplers import final, run
from fastdiffusion.samplers.fitting import fit_sampler
from fastdiffusion.schedules import flow
from fastdiffusion.tasks.generation.sample import sample
from fastdiffusion.training.models import model_task
from fastdiffusion.training.options import TrainingOptions
from fastdiffusion.training.trainer import train
from fastdiffusion.types import Cond

LENGTHS = {"": 5, "a cat": 7}  # token rows; neither 1 nor equal
WIDTH = 6


class Net(nn.Module):
    """The exact denoiser of N(mean, 1), where the mean is what the text encoder says."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Linear(WIDTH, channels)
        self.seen = []

    def forward(self, x, sigma, cond=None):
        self.seen.append(cond)
        mean = torch.zeros(len(x), x.shape[1])
        if cond is not None and cond.emb is not None:
            mask = torch.ones(cond.emb.shape[:2]) if cond.mask is None else cond.mask.float()
            mean = self.mix((cond.emb * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) + cond.pooled)
        axes = (1,) * (x.ndim - 2)
        variance = sigma.square().reshape(-1, *(1,) * (x.ndim - 1))
        return (x + variance * mean.reshape(*mean.shape, *axes)) / (1 + variance)


class Texts(nn.Module):
    """A text encoder with its own lengths, for which "nothing" is the embedding of ""."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(128, WIDTH)

    max_tokens = 7

    def row(self, text, size):
        ids = torch.tensor([1, *(ord(c) for c in text)][: LENGTHS.get(text, 7)])
        emb = self.table(torch.cat([ids, ids.new_zeros(LENGTHS.get(text, 7) - len(ids))]))[None]
        extra = {"size_ids": torch.tensor([[float(n) for n in size or (0, 0)]])}
        return Cond(emb=emb, pooled=emb.mean(1), extra=extra)

    def encode(self, prompts, size=None):
        return Cond.cat([self.row(text, size) for text in prompts])

    def null(self, n, size=None):
        return self.encode([""] * n, size)

    def token_spans(self, text):
        return [(0, 0), *((i, i + 1) for i in range(len(text)))][:7]

    def unknown_words(self, text):
        return []


class Quarter:
    """An autoencoder of factor 4 that means over blocks, 3 channels to 5."""

    factor, image_channels, latent_channels = 4, 3, 5

    def encode(self, x):
        return torch.cat([nn.functional.avg_pool2d(x, 4), x.new_zeros(len(x), 2, x.shape[2] // 4, x.shape[3] // 4)], 1)

    def decode(self, z):
        return nn.functional.interpolate(z[:, :3], scale_factor=4).clamp(-1, 1)


def foreign(shape=(5, 6, 4), texts=True, **given) -> Model:
    torch.manual_seed(0)
    net, encoder = Net(shape[0]).eval().requires_grad_(False), Texts().eval().requires_grad_(False)
    parts = {"conditioner": encoder, "modules": {"net": net, "text_encoder": encoder}} if texts else {}
    return Model(net, shape, sigma_max=30.0, info={"name": "foreign"}, **{"modules": {"net": net}, **parts, **given})


def latent() -> Model:
    return foreign(autoencoder=Quarter(), scale=3.0, schedule=lambda steps, size: flow(steps))


def test_its_parts_satisfy_the_protocols():
    assert isinstance(Texts(), Conditioner) and isinstance(Quarter(), Autoencoder)
    assert not isinstance(Quarter(), Conditioner)


def test_what_follows_from_its_parts():
    model = latent()
    assert (model.factor, model.image_shape, model.sigma_data) == (4, (3, 24, 16), 1.0)
    assert model.encode(torch.zeros(2, 3, 24, 16)).shape == (2, 5, 6, 4)
    assert model.decode(torch.zeros(20, 5, 6, 4)).shape == (20, 3, 24, 16)
    assert model.parameters_count == 5 * WIDTH + 5
    assert model.to("cpu") is model and model.device == torch.device("cpu")
    assert model.table(4).sigmas == tuple(flow(4).tolist()), "its own schedule"
    assert model.table(4, schedule="karras").sigmas[0] == pytest.approx(30.0), "unless one is named"
    assert foreign().table(4).sigmas[0] == pytest.approx(30.0)
    assert replace(foreign(), sigma_max=3.0).table(4).sigmas[0] == pytest.approx(3.0), "textbook follows the levels"


def test_its_id_covers_weights_and_settings():
    model, with_lora = foreign(), foreign()
    with_lora.denoise.settings = {"lora": "a"}
    assert model.id == foreign().id == model.with_table(3, model.table(3)).id
    assert len({model.id, with_lora.id, foreign((5, 4, 4)).id}) == 3
    with torch.no_grad():
        model.modules["text_encoder"].table.weight[3, 2] += 1e-3
    assert replace(model).id != foreign().id


def test_nothing_is_what_its_conditioner_says():
    model = latent()
    null, said = model.null(2, (24, 16)), model.encode_prompt(["a cat", ""], (24, 16))
    assert null.emb.shape[1] == 5 and null.extra["size_ids"].tolist() == [[24.0, 16.0]] * 2
    assert said.emb.shape[1] == 7 and said.mask.sum(1).tolist() == [7, 5], "the shorter text is padded and masked"
    torch.testing.assert_close(said.emb[1, :5], null.emb[0])
    with pytest.raises(InputError, match="takes no prompt"):
        foreign(texts=False).encode_prompt(["a cat"])
    assert foreign(texts=False).null(3) is None
    labels = replace(foreign(), classes=("a", "b")).null(3)
    assert labels.label.tolist() == [-1] * 3 and labels.emb.shape == (3, 5, WIDTH)


def test_guided_by_its_own_nothing_it_is_exact():
    """CFG of two Gaussians of equal width is the Gaussian of the mixed means: the null text counts, not zeros."""
    model = foreign()
    x, sigma = torch.randn(3, *model.shape), torch.full((3,), 0.7)
    said, null = model.encode_prompt(["a cat"] * 3), model.null()
    without, wanted = model.denoise(x, sigma, model.null(3)), model.denoise(x, sigma, said)
    guided = cfg(model.denoise, 3.0, null)(x, sigma, said)
    torch.testing.assert_close(guided, without + 3 * (wanted - without), atol=1e-5, rtol=1e-5)
    assert (guided - cfg(model.denoise, 3.0)(x, sigma, said)).abs().nan_to_num(1.0).max() > 1e-2


@pytest.mark.parametrize("shape", [(5, 6, 4), (2,), (3, 4, 6, 2)], ids=["image", "points", "video"])
def test_samples_and_fitted_tables_of_any_shape(shape):
    """A table fitted to it is at least as near to its flow as the textbook, and its samples have the right law."""
    model = foreign(shape)
    cond = model.encode_prompt(["a cat", ""])
    fitted = fit_sampler(model, 3, cond=cond, noises=16, evaluations=1500, polish=False, scale=2.0)
    assert fitted.info["shape"] == list(shape) and fitted.info["error"] <= fitted.info["textbook_error"] < 10
    x = model.table(8).sigmas[0] * torch.randn(400, *shape)
    said = cond[[0] * 400]
    samples = final(run(model.denoise, x, model.table(8), said))
    axes = [0, *range(2, samples.ndim)]
    mean = model.denoise(x[:1], torch.full((1,), 1e6), said[:1]).flatten(2).mean(2)[0] if len(shape) > 1 else None
    if mean is not None:
        torch.testing.assert_close(samples.mean(axes), mean, atol=0.2, rtol=0)
    assert float((samples - samples.mean(0)).std()) == pytest.approx(1, abs=0.1)


def test_it_goes_through_sample():
    model = latent()
    drawn = sample(model, "a cat", n=3, steps=4, seed=0)
    assert drawn.images.shape == (3, 3, 24, 16) and drawn.recipe["model"]["sha256"] == model.id
    assert drawn.recipe["parameters"]["scale"] == 3.0, "its own scale"
    assert any(c is not None and c.emb is not None for c in model.modules["net"].seen)


def test_what_needs_a_network_of_this_package_says_so(tmp_path):
    for use in (
        lambda model: save(model, tmp_path / "m.safetensors"),
        lambda model: models.native_denoiser(model, "A classifier on features"),
    ):
        with pytest.raises(InputError, match=r"needs a network that was built by fastdiffusion"):
            use(foreign())
    assert not list(tmp_path.iterdir())
    assert "3x24x16" in card.card(latent()) and "parameterization" not in card.card(latent())


# ---- conditions -------------------------------------------------------------------------------------------------


def test_conditions_of_unlike_texts_are_stacked():
    short, long = (Cond(emb=torch.full((1, n, 2), float(n)), pooled=torch.ones(1, 3)) for n in (2, 4))
    both = Cond.cat([short, long])
    assert both.emb.shape == (2, 4, 2) and both.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert len(both) == 2 and len(Cond()) == 0 and bool(Cond())
    tokens = Cond.cat([Cond(tokens=torch.ones(1, n, dtype=torch.long)) for n in (1, 3)]).tokens
    assert tokens.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert Cond.cat([short, short]).mask is None, "nothing to mask"
    with pytest.raises(InputError, match="cannot be stacked"):
        Cond.cat([short, Cond(label=torch.zeros(1, dtype=torch.long))])


def test_the_open_part_has_rows_like_all_else():
    cond = Cond(label=torch.tensor([3, 4]), extra={"size": torch.tensor([[1.0], [2.0]])})
    assert cond[[1]].extra["size"].tolist() == [[2.0]] and cond.null().extra["size"].tolist() == [[1.0], [2.0]]
    assert Cond.cat([cond, cond]).extra["size"].shape == (4, 1) and len(cond) == 2
    assert cond.to("meta").extra["size"].device.type == "meta"
    other = replace_text(cond, Cond(label=torch.tensor([7]), extra={"size": torch.tensor([[9.0]])}), 2)
    assert other.label.tolist() == [7, 7] and other.extra["size"].tolist() == [[9.0], [9.0]]


def test_an_emb_never_meets_another_texts_mask():
    mine = Cond(emb=torch.randn(2, 5, 3), mask=torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))
    unmasked = Cond(emb=torch.randn(1, 5, 3))
    assert replace_text(mine, unmasked, 2).mask is None, "all of the other text is real"
    longer = replace_text(mine, Cond(emb=torch.randn(1, 7, 3), mask=torch.ones(1, 7, dtype=torch.bool)), 2)
    assert longer.emb.shape[1] == longer.mask.shape[1] == 7
    assert not mine.null().mask.any() and not unmasked.null().mask.any()
    with pytest.raises((InputError, TypeError), match="mask"):  # the type checker of the tests may be first
        replace(mine, emb=torch.randn(2, 7, 3))


# ---- training -----------------------------------------------------------------------------------------------------


def captioned(shape, n=16):
    g = np.random.default_rng(0)
    images = g.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Images("captioned", [images], captions=[["a cat", ""][i % 2 :] for i in range(n)])


def tuned(model, data, folder, **options):
    """Its weights after six steps, killed and resumed or not."""
    chosen = TrainingOptions(steps=6, batch_size=4, lr=1e-2, folder=folder, device="cpu", verbose=False)
    train(model_task(model, data, replace(chosen, **options)), replace(chosen, **options))
    return {name: module.state_dict() for name, module in model.modules.items()}


def test_its_modules_train_by_its_loss_and_resume_bit_for_bit(tmp_path, cut):
    before, data = foreign((3, 6, 4)), captioned((3, 6, 4))
    whole = tuned(foreign((3, 6, 4)), data, tmp_path / "whole")
    with cut(3):
        tuned(foreign((3, 6, 4)), data, tmp_path / "cut")
    resumed = tuned(foreign((3, 6, 4)), data, tmp_path / "cut")
    for part, tensors in whole.items():
        changed = [not torch.equal(t, before.modules[part].state_dict()[name]) for name, t in tensors.items()]
        assert all(torch.equal(t, resumed[part][name]) for name, t in tensors.items())
        assert any(changed) == (part == "net"), "the net alone is trained"
    with pytest.raises(InputError, match=r"module of this model.*'unet'"):
        model_task(before, data, TrainingOptions(), trained=("unet",))
    with pytest.raises(InputError, match="Load the data with size="):
        model_task(before, captioned((3, 8, 8)), TrainingOptions())


def test_a_unet_of_diffusers_trains_through_its_adapter_and_the_error_of_its_noise_falls(tmp_path, cut):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tiny_pipelines import build

    from fastdiffusion.adapters import load

    build("sd15").save_pretrained(tmp_path / "sd")
    data = captioned((3, 64, 64), 8)

    def fresh():
        return load(tmp_path / "sd")

    def error(model):
        task = model_task(model, data, TrainingOptions(batch_size=8))
        with torch.no_grad():
            return float(torch.stack([task.parts["model"].loss(task.draw(1000 + i)).mean() for i in range(4)]).mean())

    whole = fresh()
    first = error(whole)
    weights = tuned(whole, data, tmp_path / "whole", steps=12)
    assert error(whole) < 0.98 * first
    with cut(5):
        tuned(fresh(), data, tmp_path / "cut", steps=12)
    resumed = tuned(fresh(), data, tmp_path / "cut", steps=12)
    for name, tensor in weights["net"].items():
        assert torch.equal(tensor, resumed["net"][name]), name
