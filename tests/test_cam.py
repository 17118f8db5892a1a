"""What the maps must be: the papers' formulas, other people's code, and no trace left in the network."""

import contextlib
import doctest
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from cervicyte.errors import UsageError
from cervicyte.explanation import cam
from cervicyte.network.resnet import CBAMResNet50

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 5
ORACLES = {
    "grad-cam": pytorch_grad_cam.GradCAM,
    "grad-cam++": pytorch_grad_cam.GradCAMPlusPlus,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "layercam": pytorch_grad_cam.LayerCAM,
}
SHORTHANDS = {"grad-cam": cam.grad_cam, "grad-cam++": cam.grad_cam_plus_plus} | {
    "hirescam": cam.hirescam,
    "layercam": cam.layercam,
}


def random_network(placement="stage", seed=0):
    """A network whose gates and normalisation do something: fresh ones are one half everywhere."""
    torch.manual_seed(seed)
    network = CBAMResNet50(CLASSES, placement).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    for name, weight in network.named_parameters():
        if name.endswith(("channel_attention.fc.2.weight", "spatial_attention.conv.weight")):
            nn.init.normal_(weight, std=0.1)
        if name.endswith("bn3.weight"):  # keeps sixteen random blocks from exploding
            nn.init.constant_(weight, 0.3)
    nn.init.normal_(network.fc.weight, std=0.5)
    nn.init.normal_(network.fc.bias)
    return network


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def close(found, expected, tolerance=1e-4):
    """Equal to `tolerance` of the largest expected value."""
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@contextlib.contextmanager
def enlarged_scores(network, factor):
    before = network.fc.weight.detach().clone()
    network.fc.weight.data.mul_(factor)
    yield
    network.fc.weight.data.copy_(before)


@pytest.mark.parametrize("layer", ["layer3", "cbam3", "layer4", "cbam4"])
@pytest.mark.parametrize("enlarged", [1.0, 1e4])
def test_map_is_that_of_pytorch_grad_cam_before_its_rescaling(network, images, layer, enlarged):
    """Its hooks, its backward pass, its formulas.

    pytorch-grad-cam adds 1e-6 to the denominator of Grad-CAM++, which the paper does not. For that
    method scores are enlarged until the constant no longer matters.
    """
    methods = ["grad-cam++"] if enlarged > 1 else ["grad-cam", "hirescam", "layercam"]
    index = 3
    targets = [ClassifierOutputTarget(index)] * len(images)
    with enlarged_scores(network, enlarged):
        for method in methods:
            theirs = ORACLES[method](network, [network.get_submodule(layer)])
            if method == methods[0]:  # the passes through the network are the same for all
                theirs(images, targets)
                activations = theirs.activations_and_grads.activations[0].numpy()
                gradients = theirs.activations_and_grads.gradients[0].numpy()
                network.zero_grad()
            theirs.activations_and_grads.release()
            raw = theirs.get_cam_image(images, None, targets, activations, gradients, False)
            close(cam.explain(network, images, method, [layer], index)[layer][:, 0], raw.clip(0))
            if cam.METHODS[method].keeps_sign:
                close(cam.explain(network, images, method, [layer], index, signed=True)[layer][:, 0], raw)


@pytest.mark.parametrize("layer", ["layer3", "cbam4"])
@pytest.mark.parametrize("method", ["grad-cam", "layercam", "grad-cam++"])
def test_map_is_that_of_torch_cam_before_its_rescaling(network, images, layer, method):
    """A second stranger's hooks and backward pass, and for two methods its formulas too.

    torch-cam 0.5 does not divide by the denominator of Grad-CAM++ (see `grad_cam_plus_plus_formula`): of
    that method its activations and gradients are taken, and the paper's quotient, in double precision.
    """
    index = 3
    names = {"grad-cam": "GradCAM", "layercam": "LayerCAM", "grad-cam++": "GradCAMpp"}
    with getattr(torchcam.methods, names[method])(network, network.get_submodule(layer)) as theirs:
        expected = theirs(index, network(images), normalized=False)[0]
        if method == "grad-cam++":
            activations, g = theirs.hook_a[0].double(), theirs.hook_g[0].double()
            activity = activations.sum((2, 3), keepdim=True)
            alpha = torch.where(g == 0, 0, g**2 / (2 * g**2 + g**3 * activity))
            weights = (alpha * g.relu()).sum((2, 3), keepdim=True)
            expected = (weights * activations).sum(1).float()
    network.zero_grad()
    close(cam.explain(network, images, method, [layer], index)[layer][:, 0], expected.detach())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]))
def test_grad_cam_plus_plus_has_the_papers_derivatives_of_the_exponential(seed, scale):
    """Weights of eq. 10 (in the form of eq. 19) from autograd's own second and third derivatives of exp(S).

    The score is linear in the activations, as behind average pooling. Gradients are in double precision
    and span nine orders of magnitude, where a constant in the denominator would show.
    """
    generator = torch.Generator().manual_seed(seed)
    activations = torch.rand(1, 3, 2, 3, generator=generator, dtype=torch.float64)
    slopes = scale * torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    start = float((activations[0] * slopes).sum())

    weights = torch.zeros(3, dtype=torch.float64)
    for k, i, j in np.ndindex(3, 2, 3):
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        y = torch.exp(slopes[k, i, j] * step)  # exp(S) / exp(S at start) along one activation
        (first,) = torch.autograd.grad(y, step, create_graph=True)
        (second,) = torch.autograd.grad(first, step, create_graph=True)
        (third,) = torch.autograd.grad(second, step)
        alpha = second / (2 * second + activations[0, k].sum() * third)
        weights[k] += float((alpha * first.clamp(min=0)).detach())
    expected = torch.einsum("k,khw->hw", weights, activations[0])

    assert math.isfinite(start)
    found = cam.grad_cam_plus_plus_formula(activations, slopes[None, None])[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_signed_hirescam_at_the_last_layer_adds_up_to_the_logit(network, images):
    signed = cam.explain(network, images, "hirescam", ["cbam4"], signed=True)["cbam4"]
    with torch.no_grad():
        logits = network(images)
    torch.testing.assert_close(signed.sum((2, 3)) + network.fc.bias, logits, rtol=0, atol=1e-4)


def test_what_hirescam_leaves_unexplained_is_rounding_and_would_show_more(network, images):
    found = cam.differentiate(network, images, ["cbam4"])
    assert cam.unexplained_by_hirescam(network, found) < 1e-4
    shifted = found._replace(logits=found.logits + torch.tensor([0, 0, 0.25, 0, 0]))
    assert cam.unexplained_by_hirescam(network, shifted) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_gradients_of_all_classes_in_one_batch_are_those_of_each_class(network, images, layer):
    x = network.features(images, layer).detach().requires_grad_()
    logits = network.logits_from(x, layer)
    alone = [torch.autograd.grad(logits[:, n].sum(), x, retain_graph=True)[0] for n in range(CLASSES)]
    together = cam._gradients(logits, [x], torch.eye(CLASSES)[:, None].expand(-1, 2, -1), True)[0]
    close(together, torch.stack(alone, 1), 1e-5)


def test_signed_hirescam_of_a_contrast_adds_up_to_the_difference_of_logits(network, images):
    contrast = [cam.Contrast(2, 4), cam.Contrast()]
    signed = cam.explain(network, images, "hirescam", ["cbam4"], contrast, signed=True)["cbam4"]
    with torch.no_grad():
        logits = network(images)
    bias = network.fc.bias.detach()
    close(signed[:, 0].sum((1, 2)) + bias[2] - bias[4], logits[:, 2] - logits[:, 4])
    best, runner_up = logits.topk(2).indices.T
    expected = logits.topk(2).values @ torch.tensor([1.0, -1.0]) - bias[best] + bias[runner_up]
    close(signed[:, 1].sum((1, 2)), expected)


def test_contrast_follows_each_image_and_defaults_to_the_runner_up(network, images):
    with torch.no_grad():
        best, runner_up = network(images).topk(2).indices.T
    by_default = cam.explain(network, images, layers=["cbam4"], classes=cam.Contrast())["cbam4"]
    for n in range(len(images)):
        named = cam.Contrast(int(best[n]), int(runner_up[n]))
        by_name = cam.explain(network, images, layers=["cbam4"], classes=named)
        torch.testing.assert_close(by_default[n], by_name["cbam4"][n])


@pytest.mark.parametrize("method", ORACLES)
def test_maps_are_never_negative_and_signed_maps_of_the_opposite_are_opposite(network, images, method):
    layers = ["layer2", "cbam4"]
    maps = cam.explain(network, images, method, layers)
    every = cam.explain(network, images, method, layers, signed=True)
    there = cam.explain(network, images, method, layers, cam.Contrast(0, 1), signed=True)
    back = cam.explain(network, images, method, layers, cam.Contrast(1, 0), signed=True)
    for layer in layers:
        assert maps[layer].min() >= 0
        assert every[layer].min() < 0 < every[layer].max()
        torch.testing.assert_close(there[layer], -back[layer])


@pytest.mark.parametrize("method", ORACLES)
def test_several_layers_and_classes_at_once_are_what_each_is_alone(network, images, method):
    layers = ["cbam4", "layer2", "cbam3"]
    together = cam.explain(network, images, method, layers, [3, 0])
    assert list(together) == layers
    for layer in layers:
        assert together[layer].dtype == torch.float32
        for position, index in enumerate([3, 0]):
            alone = SHORTHANDS[method](network, images, layer, index)
            close(together[layer][:, position : position + 1], alone)
    assert together["layer2"].shape == (2, 2, 6, 6)
    assert together["cbam4"].shape == (2, 2, 2, 2)


@pytest.mark.parametrize("placement", ["block", "none"])
def test_networks_without_stage_gates_are_explained_at_their_own_layers(placement, images):
    network = random_network(placement)
    signed = cam.explain(network, images, "hirescam", ["layer4"], signed=True)["layer4"]
    with torch.no_grad():
        close(signed.sum((2, 3)) + network.fc.bias, network(images))
    with pytest.raises(UsageError, match=r"no layer 'cbam4'.*layer1, layer2, layer3, layer4"):
        cam.explain(network, images, layers=["cbam4"])
    assert list(cam.explain(network, images)) == [cam.DEFAULT_LAYER]
    with pytest.raises(UsageError, match=f"{placement}.*placement 'stage'"):
        cam.cbam_gates(network, images)


def test_gates_are_what_the_forward_pass_multiplies_by(network, images):
    gates = cam.cbam_gates(network, images)
    assert list(gates) == ["cbam1", "cbam2", "cbam3", "cbam4"]
    for stage in range(1, 5):
        gate = gates[f"cbam{stage}"]
        with torch.no_grad():
            before = network.features(images, f"layer{stage}")
            after = network.features(images, f"cbam{stage}")
        assert float(gate.spatial.std()) > 0
        assert float(gate.channel.std()) > 0
        close(before * gate.channel[:, :, None, None] * gate.spatial[:, None], after, 1e-6)


def everything_of(network):
    """Every value and flag that an explanation might have disturbed."""
    return {
        "values": {name: value.clone() for name, value in network.state_dict().items()},
        "flags": [(p.requires_grad, p.grad) for p in network.parameters()],
        "training": [module.training for module in network.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), sorted(vars(m)))
            for m in network.modules()
        ],
    }


def test_explaining_leaves_no_trace_in_the_network_or_the_images(network, images):
    network.layer3.requires_grad_(False)  # the flags differ, so that any change of them shows
    before, pixels = everything_of(network), images.clone()
    for method in ORACLES:
        cam.explain(network, images, method, ["cbam3", "cbam4"], [0, 1])
    cam.cbam_gates(network, images)
    after = everything_of(network)
    for name, value in before.pop("values").items():
        assert torch.equal(value, after["values"][name])
    after.pop("values")
    assert before == after
    assert torch.equal(pixels, images)
    assert not images.requires_grad
    network.requires_grad_(True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_are_the_same_inside_the_callers_no_grad_or_inference_mode(network, images, mode):
    expected = cam.grad_cam_plus_plus(network, images)
    with mode():
        found = cam.grad_cam_plus_plus(network, images.clone())
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert torch.equal(found.clone(), expected)


def test_sixteen_threads_get_the_maps_that_they_get_one_after_another(network):
    generator = torch.Generator().manual_seed(2)
    layers = ["cbam3", "layer4", "cbam4", "layer3"]
    tasks = [
        (torch.randn(1, 3, 48, 48, generator=generator), list(ORACLES)[n % 4], layers[n // 4], n % CLASSES)
        for n in range(16)
    ]

    def task(arguments):
        torch.set_num_threads(1)
        image, method, layer, index = arguments
        return cam.explain(network, image, method, [layer], index)[layer]

    serial = [task(arguments) for arguments in tasks]
    with ThreadPoolExecutor(16) as threads:
        for found, expected in zip(threads.map(task, tasks), serial, strict=True):
            assert torch.equal(found, expected)
    assert len({tuple(values.flatten().tolist()) for values in serial}) > 12  # they do differ


def test_what_does_not_exist_is_refused_by_naming_what_does(network, images):
    with pytest.raises(UsageError, match=r"'eigen-cam'.*grad-cam, grad-cam\+\+, hirescam, layercam"):
        cam.explain(network, images, "eigen-cam")
    with pytest.raises(UsageError, match=r"'layer9'.*layer1, cbam1, .*cbam4"):
        cam.explain(network, images, layers=["cbam4", "layer9"])
    no_lists: list[Any] = [[], "cbam4"]
    for layers in no_lists:
        with pytest.raises(UsageError, match=r"list of names.*cbam4"):
            cam.explain(network, images, layers=layers)
    wrong: list[Any] = [5, -1, True, 1.0, "cell"]
    for index in wrong:
        with pytest.raises(UsageError, match="0 to 4"):
            cam.explain(network, images, classes=[index])
    with pytest.raises(UsageError, match="at least one"):
        cam.explain(network, images, classes=[])
    with pytest.raises(UsageError, match="two different classes"):
        cam.explain(network, images, classes=cam.Contrast(1, 1))
    with pytest.raises(UsageError, match=r"\[N, 3, H, W\]"):
        cam.explain(network, images[0])


def test_a_network_in_training_mode_is_refused_and_stays_in_it(network, images):
    network.train()
    statistics = network.bn1.running_mean.clone()
    for call in (cam.explain, cam.cbam_gates):
        with pytest.raises(UsageError, match="training mode"):
            call(network, images)
    assert network.training
    assert torch.equal(statistics, network.bn1.running_mean)
    network.eval()


def test_the_documentation_has_the_speeds_that_were_measured():
    measured = json.loads((PROJECT / "benchmarks" / "results" / "explanation_speed.json").read_text())
    page = (PROJECT / "docs" / "explanations.md").read_text()
    for batch in measured["batches"]:
        cost, gain = batch["cervicyte_in_forward_passes"], batch["times_as_fast_as_pytorch_grad_cam"]
        cells = (
            f"{cost['median']:.2f} ({cost['min']:.2f} to {cost['max']:.2f})",
            f"{gain['median']:.1f} ({gain['min']:.1f} to {gain['max']:.1f})",
        )
        assert f"| {batch['images']} | {cells[0]} | {cells[1]} |" in page


def test_every_example_in_the_documentation_runs():
    result = doctest.testmod(cam, extraglobs={"torch": torch, "CBAMResNet50": CBAMResNet50})
    assert result.attempted >= 6
    assert result.failed == 0
