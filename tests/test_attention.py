"""The attention hook: exact where nothing is changed, gone afterwards, and private to its thread."""

import threading

import pytest
import torch
from torch import nn

from fastdiffusion import nets, samplers
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.errors import InputError
from fastdiffusion.guidance.attention import (
    Controller,
    Replace,
    Reweight,
    Share,
    Store,
    attention_control,
    attention_layers,
    control,
)  # fmt: skip
from fastdiffusion.guidance.core import start
from fastdiffusion.nets.layers import HOOKS, Attention, AttentionCall
from fastdiffusion.types import Cond, Run

SPECS = {
    "unet": {
        "name": "unet", "width": 16, "head": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [0, 1],
        "context": 12,
    },
    "linear": {
        "name": "unet", "width": 16, "head": 8, "multiples": [1], "blocks": [1], "attention": [0], "context": 12,
        "linear": True,
    },
    "dit": {"name": "dit", "width": 16, "head": 8, "depth": 2, "patch": 1, "context": 12},
}  # fmt: skip


def attentive(kind="unet"):
    """A random net whose every layer has something to say, its input and a condition of which one token is hidden."""
    net = nets.build({**SPECS[kind], "in_channels": 3, "out_channels": 3}).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 4] = False
    return net, (torch.randn(2, 3, 8, 8), torch.zeros(2), Cond(emb=torch.randn(2, 5, 12), mask=mask))


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


class Everything(Controller):
    """Sees all calls, changes none."""

    def __init__(self):
        super().__init__()
        self.calls: list[AttentionCall] = []

    def __call__(self, call):
        self.calls.append(call)


def hooks_of(net):
    return [hooks for m in net.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks) if hooks]


@pytest.mark.parametrize("kind", SPECS)
def test_every_layer_is_seen_once_by_name(kind):
    net, inputs = attentive(kind)
    everything = Everything()
    with control(Denoiser(net), everything):
        net(*inputs)
    layers = attention_layers(net)
    assert {call.name: call.module for call in everything.calls} == layers
    assert len(everything.calls) == len(layers) == sum(isinstance(m, Attention) for m in net.modules())
    for call in everything.calls:
        cross = call.name.endswith("cross_attention")
        assert cross == (call.tokens is not None) and isinstance(net.get_submodule(call.name), nn.Module)
        assert call.heads == call.module.heads == call.query.shape[1]
        sums = call.probabilities.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert call.probabilities.shape == (*call.query.shape[:3], call.key.shape[2])
        if cross:
            assert call.key.shape[2] == 6 and not call.probabilities[1, ..., 5].any()  # one hidden by the mask


@pytest.mark.parametrize("kind", SPECS)
def test_to_pass_through_is_exact_and_the_edited_path_agrees(kind):
    net, inputs = attentive(kind)
    plain = net(*inputs)
    for passing in (Everything(), Store(), Reweight({0: 7.0}, layers="none")):
        with control(net, passing):
            assert torch.equal(net(*inputs), plain)

    class Explicit(Controller):
        def __call__(self, call):
            call.probabilities = call.probabilities

    for edited in (Reweight({0: 1.0}), Explicit(), Replace(source=0, target=0)):
        with control(net, edited):
            assert 0 < relative(net(*inputs), plain) < 1e-4
    with control(net, Share(1, 0.0)):
        assert torch.equal(net(*inputs), plain)
    assert torch.equal(net(*inputs), plain)


def test_nothing_remains_not_even_after_an_exception():
    net, inputs = attentive()
    plain, before = net(*inputs), (set(vars(net)), hooks_of(net))

    class Failing(Controller):
        def __call__(self, call):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), control(net, Reweight({1: 3.0}), Failing()):
        net(*inputs)
    assert (set(vars(net)), hooks_of(net)) == before and not HOOKS.stack
    assert torch.equal(net(*inputs), plain)


def test_two_threads_on_one_net_do_not_meet():
    net, inputs = attentive()
    rounds = 20

    def changed():
        store = Store()
        with torch.no_grad(), control(net, store, Reweight({1: 3.0})):
            return [net(*inputs) for _ in range(rounds)], store

    def plain():
        with torch.no_grad():
            return [net(*inputs) for _ in range(rounds)]

    alone = changed(), plain()
    found, barrier = {}, threading.Barrier(3)

    def work(name, f):
        barrier.wait()
        found[name] = f()

    threads = [threading.Thread(target=work, args=job) for job in (("a", changed), ("b", plain), ("c", changed))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, y) for x, y in zip(found["b"], alone[1], strict=True))
    assert not torch.equal(alone[0][0][0], alone[1][0])
    for made, store in (found["a"], found["c"]):
        assert all(torch.equal(x, y) for x, y in zip(made, alone[0][0], strict=True))
        assert store.probabilities.keys() == alone[0][1].probabilities.keys()
        assert all(torch.equal(p, alone[0][1].probabilities[k]) for k, p in store.probabilities.items())


def test_contexts_nest_and_nets_do_not_meet():
    (net, inputs), (other, _) = attentive(), attentive("dit")
    outer, inner, foreign = Everything(), Everything(), Everything()
    with control(net, outer), control(other, foreign), control(net, Reweight({0: 2.0}), inner):
        net(*inputs)
    assert [c.name for c in outer.calls] == [c.name for c in inner.calls]
    assert {c.name for c in outer.calls} == set(attention_layers(net))
    assert not foreign.calls


def test_a_text_encoder_is_left_alone():
    spec = {**SPECS["unet"], "in_channels": 3, "out_channels": 3, "words": {"vocabulary": 300, "width": 12, "head": 4}}
    net = nets.build(spec).eval()
    everything = Everything()
    with control(net, everything):
        net(torch.randn(1, 3, 8, 8), torch.zeros(1), Cond(tokens=torch.tensor([[5, 6, 7]])))
    assert {c.name for c in everything.calls} == set(attention_layers(net)) == set(attention_layers(net.net))


def test_a_net_without_attention_or_compiled_is_refused():
    with pytest.raises(InputError, match="no attention layers"):
        attention_layers(nn.Linear(1, 1))
    net, _ = attentive()
    net._compiled_call_impl = net._call_impl  # as net.compile() does
    with pytest.raises(InputError, match="compiled"), control(net, Store()):
        pass


# ---- the controllers ----------------------------------------------------------------------------------------------


def test_store_keeps_the_mean_and_only_what_it_was_asked_for():
    net, (x, c_noise, cond) = attentive()
    everything, store = Everything(), Store(kind="cross", layers=["encoder.*", "mid.*"], rows=slice(1, 2))
    small = Store(pixels=(0, 16))
    with torch.no_grad(), control(net, everything, store, small):
        for scale in (1, 2, 3):
            net(scale * x, c_noise, cond)
    wanted = [n for n in attention_layers(net) if n.endswith("cross_attention") and not n.startswith("decoder")]
    assert list(store.probabilities) == wanted
    assert {p.shape[1] for p in small.probabilities.values()} == {16} and len(small.probabilities) > 2
    for name, kept in store.probabilities.items():
        calls = [c.probabilities[1:, ..., 1:].mean(1) for c in everything.calls if c.name == name]
        assert len(calls) == 3
        torch.testing.assert_close(kept, torch.stack(calls).mean(0))
    store.clear()
    assert not store.probabilities
    with control(net, small), pytest.raises(InputError, match="another Store"):
        net(x[:1], c_noise[:1], cond[[0]])


def test_replace_makes_a_row_attend_as_another():
    """Wholly, or column by column where the prompts differ; what cannot be is refused."""
    net, (x, c_noise, cond) = attentive()
    after = Everything()
    with torch.no_grad(), control(net, Replace(source=0, target=1), after):
        net(x, c_noise, cond)
    assert all(torch.equal(c.probabilities[1], c.probabilities[0]) for c in after.calls)
    before, mapped = Everything(), Everything()
    layer = "encoder.0.cross_attention"
    with torch.no_grad(), control(net, before), control(net, Replace(columns=[2, -1, 0], kind="cross"), mapped):
        net(x, c_noise, cond)
    for old, new in zip(before.calls, mapped.calls, strict=True):
        assert torch.equal(old.probabilities[0], new.probabilities[0])
    with torch.no_grad(), control(net, first := Everything()):
        net(x, c_noise, cond)
    p = next(c.probabilities for c in first.calls if c.name == layer)
    q = next(c.probabilities for c in mapped.calls if c.name == layer)
    expected = torch.stack([p[0, ..., 0], p[0, ..., 3], p[1, ..., 2], p[0, ..., 1], p[1, ..., 4], p[1, ..., 5]], -1)
    torch.testing.assert_close(q[1], expected)
    for wrong in (Replace(target=2), Replace(columns=[9], kind="cross"), Reweight({5: 1.0}), Reweight({0: 1.0}, [2])):
        with pytest.raises(InputError), control(net, wrong):
            net(x, c_noise, cond)


def test_reweight_scales_columns_and_0_takes_a_token_away():
    """A token of weight 0 adds as little as one whose value is 0."""
    net, (x, c_noise, cond) = attentive()
    plain, rows = Everything(), Everything()
    with torch.no_grad():
        unchanged = net(x, c_noise, cond)
        with control(net, plain), control(net, Reweight({1: 2.5}, rows=[1], layers="encoder.0*"), rows):
            changed = net(x, c_noise, cond)
    torch.testing.assert_close(changed[0], unchanged[0])
    assert relative(changed[1], unchanged[1]) > 1e-3
    call = next(c for c in rows.calls if c.name == "encoder.0.cross_attention")
    own = call.weigh(call.query, call.key, call.mask)
    torch.testing.assert_close(call.probabilities[1, ..., 2], 2.5 * own[1, ..., 2])
    torch.testing.assert_close(call.probabilities[1, ..., 3], own[1, ..., 3])

    class Silent(Controller):
        def __call__(self, call):
            if call.tokens is not None:
                call.value = call.value.clone()
                call.value[..., 2, :] = 0

    outputs = []
    for controller in (Reweight({1: 0.0}), Silent()):
        with torch.no_grad(), control(net, controller):
            outputs.append(net(x, c_noise, cond))
    assert relative(*outputs) < 1e-4


def test_share_looks_at_the_other_half_alone():
    """Of two equal halves each sees itself; and stacked conditions are halves of their own."""
    net, (x, c_noise, cond) = attentive()
    with torch.no_grad():
        equal, plain = (torch.cat([x[:1]] * 2), c_noise, cond[[0, 0]]), net(x[:1], c_noise[:1], cond[[0]])
        with control(net, Share(1, 1.0)):
            assert relative(net(*equal)[:1], plain) < 1e-4
            pair = net(x, c_noise, cond)
            stacked = net(torch.cat([x, x.flip(0)]), c_noise.repeat(2), Cond.cat([cond, cond[[1, 0]]]))
            swapped = net(x.flip(0), c_noise, cond[[1, 0]])
            with pytest.raises(InputError, match="two halves"):
                net(x[:1], c_noise[:1], cond[[0]])
    torch.testing.assert_close(stacked, torch.cat([pair, swapped]), rtol=1e-4, atol=1e-4)
    unchanged = net(x, c_noise, cond)
    torch.testing.assert_close(pair[1], unchanged[1], rtol=1e-4, atol=1e-4)
    assert relative(pair[0], unchanged[0]) > 1e-3


def test_windows_are_parts_of_the_run():
    net, inputs = attentive()
    with torch.no_grad():
        plain = net(*inputs)
        run, changed = Run((4.0, 3.0, 2.0, 1.0, 0.5), 5), []
        guided = start(attention_control(net, net, Reweight({1: 3.0}, window=(0.2, 0.6))), run)
        for run.index in range(5):
            changed.append(not torch.equal(guided(*inputs), plain))
    assert changed == [False, True, True, False, False]
    for unknown in (None, Run((), 0)):
        with pytest.raises(InputError, match="where the run is"), control(net, Store(window=(0.0, 0.5)), run=unknown):
            net(*inputs)
    index = []

    class Notes(Controller):
        def __call__(self, call):
            index.append(call.progress)

    denoiser, table = Denoiser(net), samplers.table("heun", torch.tensor([4.0, 1.0, 0.0]))
    samplers.final(samplers.run(attention_control(denoiser, net, Notes(layers="mid.0.attention")), inputs[0], table))
    assert index == [0, 1 / 3, 2 / 3]


class Pair(nn.Module):
    """Self- and cross-attention in float64, which the nets' embedding of the noise level is not."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(8, 4, start_at_zero=False)
        self.cross_attention = Attention(8, 4, 6, start_at_zero=False)

    def forward(self, x, context):
        return self.cross_attention(x + self.attention(x), context)


def test_gradients_flow_through_the_hook():
    """Through the stored probabilities, and through an edited output: compared with finite differences."""
    net, x, context = Pair().double(), torch.randn(2, 9, 8).double(), torch.randn(2, 5, 6).double()

    def loss(at):
        store = Store(kind="cross", differentiable=True)
        with control(net, store, Replace(kind="self"), Reweight({2: 4.0})):
            out = net(at, context)
        return out.square().sum() + sum(p[..., 1].square().sum() for p in store.probabilities.values())

    assert torch.autograd.gradcheck(loss, x.requires_grad_())
    with control(net, kept := Store()):
        net(x, context)
    assert len(kept.probabilities) == 2 and not any(p.requires_grad for p in kept.probabilities.values())
