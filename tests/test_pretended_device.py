"""The pretended device is as strict as CUDA, and computes what the CPU computes."""

import copy
import threading
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from pretended_device import pretended
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastdiffusion import nets
from fastdiffusion.training import optimizers
from fastdiffusion.training.ema import Ema


@pytest.fixture
def device():
    with pretended() as device:
        yield device


def both(*shape):
    """The same numbers on either side."""
    x = torch.randn(shape)
    return x.to("cuda"), x


# ---- what CUDA refuses --------------------------------------------------------------------------------------------

REFUSED = {
    "add": lambda on, off: on + off,
    "add in place": lambda on, off: on.add_(off),
    "add to the CPU in place": lambda on, off: off.add_(on),
    "a scalar of the device beside a CPU tensor": lambda on, off: off * on.sum(),
    "a scalar of the device into a CPU scalar": lambda on, off: torch.tensor(1.0).add_(on.sum()),
    "product": lambda on, off: on @ off.T,
    "product with CPU weights": lambda on, off: F.linear(on, off),
    "convolution": lambda on, off: F.conv1d(on[None], off[None]),
    "mask": lambda on, off: on.masked_fill(off > 0, 0.0),
    "where": lambda on, off: torch.where(off > 0, on, on),
    "where, the other": lambda on, off: torch.where(on > 0, on, off),
    "cat": lambda on, off: torch.cat([on, off]),
    "stack of scalars": lambda on, off: torch.stack([on.sum(), torch.tensor(1.0)]),
    "gather": lambda on, off: on.gather(1, torch.zeros(4, 1, dtype=torch.long)),
    "index_select": lambda on, off: on.index_select(0, torch.tensor([0])),
    "embedding": lambda on, off: F.embedding(torch.tensor([0, 1]), on),
    "an index of the device into a CPU tensor": lambda on, off: off[(on > 0)],
    "write where a mask is": lambda on, off: on.__setitem__(on > -99, off.flatten()),
    "write to the CPU": lambda on, off: off.__setitem__(off > 9, on.flatten()[:0]),
    "clamp": lambda on, off: on.clamp(off, on),
    "lerp": lambda on, off: torch.lerp(on, on, off),
    "bucketize": lambda on, off: torch.bucketize(on, off[0].sort().values),
    "attention": lambda on, off: F.scaled_dot_product_attention(on[None], off[None], on[None]),
    "norm with CPU weights": lambda on, off: F.layer_norm(on, (4,), off[0]),
    "loss": lambda on, off: F.mse_loss(on, off),
    "equal": lambda on, off: torch.equal(on, off),
    "many at once": lambda on, off: torch._foreach_add_([on], [off]),
    "a plain list as a tensor": lambda on, off: on + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "noise made on the CPU": lambda on, off: on + torch.randn(4, 4),
    "noise of a CPU generator": lambda on, off: torch.randn(3, device="cuda", generator=torch.Generator()),
    "noise of a CPU generator, in place": lambda on, off: on.normal_(generator=torch.Generator()),
    "a module that stayed behind": lambda on, off: nn.Linear(4, 4)(on),
    "a gradient of the other side": lambda on, off: setattr(on, "grad", off),
    "zeros beside a CPU tensor": lambda on, off: torch.zeros_like(off) + on,
    "new beside a CPU tensor": lambda on, off: off.new_ones(4, 4) + on,
}


@pytest.mark.parametrize("operation", REFUSED.values(), ids=REFUSED)
def test_what_cuda_refuses(device, operation):
    on, off = both(4, 4)
    with pytest.raises(RuntimeError, match=r"same device|generator|assigned grad"):
        operation(on, off)
    operation_on_one_side(operation, off)


def operation_on_one_side(operation, off):
    """It is the mixture that was refused, not the call."""
    if "cuda" not in str(operation.__code__.co_consts) and "Linear" not in operation.__code__.co_names:
        operation(off.clone(), off.clone())


@pytest.mark.parametrize("read", [lambda x: x.numpy(), lambda x: memoryview(x.numpy()), lambda x: x.__array__()])
def test_numpy_cannot_read_it(device, read):
    with pytest.raises(TypeError, match=r"Use Tensor.cpu\(\) first"):
        read(torch.ones(3, device="cuda"))
    assert (torch.ones(3, device="cuda").cpu().numpy() == 1).all()


# ---- what CUDA takes ----------------------------------------------------------------------------------------------

TAKEN = {
    "a CPU scalar": lambda on, off: on * torch.tensor(2.0),
    "a number": lambda on, off: (1 - on) ** 2 / 3,
    "CPU indices": lambda on, off: on[torch.tensor([0, 2])],
    "a CPU mask as index": lambda on, off: on[torch.tensor([True, False, True, False])],
    "write at CPU indices": lambda on, off: on.index_put((torch.tensor([1]),), torch.tensor(5.0)),
    "copy": lambda on, off: torch.empty_like(on).copy_(off),
    "write a slice from the CPU": lambda on, off: write(on.clone(), off),
    "fill with a CPU scalar": lambda on, off: on.clone().fill_(off.sum()),
    "masked fill with a CPU scalar": lambda on, off: on.masked_fill(on > 0, torch.tensor(1.0)),
    "a code": lambda on, off: F.one_hot((on > 0).long(), 2) * on[..., None],
    "attention with the causal mask": lambda on, off: F.scaled_dot_product_attention(*[on[None]] * 3, is_causal=True),
    "views and steps in place": lambda on, off: on.T[1:].add_(1).reshape(-1).mul_(2),
    "zeros where it is": lambda on, off: on + torch.zeros(4, device=on.device),
    "new beside it": lambda on, off: on + on.new_tensor([1.0, 2.0, 3.0, 4.0]) + torch.ones_like(on) + on.new_ones(4),
    "to another's side": lambda on, off: on + off.to(on),
    "to another type": lambda on, off: on.double() + off.to(on.device, torch.float64),
    "from a list": lambda on, off: on + torch.as_tensor([1.0, 2.0, 3.0, 4.0], device=on.device),
    "norms": lambda on, off: F.layer_norm(on, (4,)) + F.group_norm(on[None], 2)[0],
    "products": lambda on, off: torch.einsum("ij,kj->ik", on, on) + on @ on,
    "spectra": lambda on, off: torch.fft.ifft2(torch.fft.fft2(on)).real,
    "sorted": lambda on, off: on.sort(1).values + on.cumsum(0),
    "covariance": lambda on, off: torch.cov(on),
    "solved": lambda on, off: torch.linalg.solve(on @ on.T + torch.eye(4, device=on.device), on),
    "resized": lambda on, off: F.interpolate(on[None, None], scale_factor=2, mode="bilinear"),
    "padded": lambda on, off: F.pad(on[None], (1, 1), mode="reflect"),
    "a module that went along": lambda on, off: moved_net()(on),
    "many at once": lambda on, off: torch.stack(torch._foreach_mul([on, on], 2.0)),
    "its parts": lambda on, off: torch.stack([part.sum() for part in on.unbind()]),
    "under vmap": lambda on, off: torch.func.vmap(lambda row: row * on.sum())(on),
    "a derivative": lambda on, off: torch.func.jvp(lambda x: x**2 * on, (on,), (on,))[1],
}


def write(on, off):
    on[1:3] = off[1:3]
    return on


def moved_net():
    torch.manual_seed(1)
    return nn.Linear(4, 4).to("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("operation", TAKEN.values(), ids=TAKEN)
def test_what_cuda_takes_is_what_the_cpu_makes(operation):
    torch.manual_seed(0)
    expected = operation(*[torch.randn(4, 4)] * 2)
    torch.manual_seed(0)
    with pretended() as device:
        made = operation(*both(4, 4))
        assert made.device == torch.device("cuda:0") and made.is_cuda and device.operations
        assert made.cpu().device.type == "cpu"
    assert torch.equal(made, expected)


def test_memory_is_not_shared_between_the_sides(device):
    on, off = both(3)
    before = off.clone()
    on.zero_()
    back = on.cpu()
    on.fill_(7)
    assert torch.equal(off, before) and not back.any()
    assert on.to("cuda") is on and off.to("cpu") is off and copy.deepcopy(on).is_cuda


def test_a_module_moves_in_place(device):
    layer = nn.Linear(3, 3)
    weight, view = layer.weight, layer.weight.detach()
    layer.register_buffer("mean", torch.zeros(3))
    layer.to("cuda")
    assert layer.weight is weight and weight.is_cuda and layer.mean.is_cuda and not view.is_cuda
    state = {name: value.cpu() for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)  # from the CPU, as after reading a file
    assert weight.is_cuda and not layer.to("cpu").weight.is_cuda


# ---- gradients ----------------------------------------------------------------------------------------------------


def test_gradients_travel_to_and_fro():
    def gradients(side):
        torch.manual_seed(0)
        x, scale = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
        there = (x.to(side) * scale.to(side)).sin()
        ((there.to("cpu") * x).sum() + there.square().sum().cpu()).backward()
        (second,) = torch.autograd.grad(torch.autograd.grad((x.to(side) ** 3).sum(), x, create_graph=True)[0].sum(), x)
        return x.grad, scale.grad, second

    with pretended():
        made = gradients("cuda")
        assert all(g.device.type == "cpu" for g in made)
    for got, wanted in zip(made, gradients("cpu"), strict=True):
        assert torch.equal(got, wanted)


def test_a_mixture_in_the_backward_pass_is_seen(device):
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            assert grad.device.type == "cuda"
            return grad * torch.ones(3)

    x = torch.ones(3, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError, match="same device"):
        Careless.apply(x).sum().backward()


def test_what_others_patched_for_a_while_is_pretended_too():
    """transformers replaces ``torch.linspace`` while it opens a model, and torch may list its functions just then."""
    original, listed = torch.linspace, torch.utils._device._device_constructors
    listed.cache_clear()
    with mock.patch.object(torch, "linspace", lambda *args, **kwargs: original(*args, **kwargs)):
        assert original not in listed()
    try:
        with pretended():
            assert torch.linspace(0, 1, 3, device="cuda").device.type == "cuda"
    finally:
        listed.cache_clear()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_is_that_of_the_cpu_bit_for_bit(optimizer):
    spec = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8,
            "in_channels": 1, "out_channels": 1}  # fmt: skip

    def trained(side):
        torch.manual_seed(0)
        net = nets.build(spec)
        net.to(side)
        steps, average = optimizers.build(optimizer, net, 1e-2), Ema(net, (0.1,))
        for step in range(3):
            x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(step)).to(side)
            loss = checkpoint(net, x, torch.ones(2, device=side), use_reentrant=False).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for one in steps:
                one.step()
                one.zero_grad()
            average.update()
            if step == 1:  # cut, and continued from what was packed
                tensors, settings = optimizers.pack(steps)
                steps = optimizers.build(optimizer, net, 1e-2)
                optimizers.unpack(steps, {k: v.cpu() for k, v in tensors.items()}, settings)
        assert all(p.device.type == side for p in net.parameters())
        return [*net.state_dict().values(), *average.weights(0.1).values()]

    with pretended():
        made = trained("cuda")
    expected = trained("cpu")
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


# ---- what programs ask --------------------------------------------------------------------------------------------


def test_autocast_is_the_cpus(device):
    on = torch.ones(4, 4, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
        assert (on @ on).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")


def test_the_block_ends():
    with pretended():
        x = torch.ones(3, device="cuda")
        assert torch.cuda.is_available() and torch.accelerator.is_available()
    assert x.device.type == "cpu" and torch.equal(x + torch.ones(3), torch.full((3,), 2.0))
    assert "device" not in vars(torch.Tensor)
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.ones(3, device="cuda")


def test_every_thread_is_watched(device):
    refused = []

    def work():
        try:
            torch.ones(3, device="cuda") + torch.ones(3)
        except RuntimeError as error:
            refused.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(refused) == 1


def test_memory_that_is_freed_is_forgotten(device):
    for _ in range(3 * device.limit):
        torch.ones(1, device="cuda")
    assert len(device.table) < 2 * 4096 + 10
    assert not any(torch.ones(1).is_cuda for _ in range(1000))


WAITING = {
    "item": lambda x: x.sum().item(), "float": lambda x: float(x[0]), "bool": lambda x: bool(x.any()),
    "if": lambda x: 1 if x[0] > 0 else 0, "cpu": lambda x: x.cpu(), "tolist": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0], "nonzero": lambda x: x.nonzero(), "copy": lambda x: torch.empty(3).copy_(x),
}  # fmt: skip


@pytest.mark.parametrize("ask", WAITING.values(), ids=WAITING)
def test_what_waits_is_counted(device, ask):
    x = torch.ones(3, device="cuda")
    (x * 2 + x[1:].sum()).softmax(0)
    assert not device.waits
    ask(x)
    assert device.waits.total() == 1
    (place,) = device.places
    assert "test_pretended_device.py" in place
    ask(torch.ones(3))
    assert device.waits.total() == 1
