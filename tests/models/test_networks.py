"""Networks: identity at the start, odd sizes, switches, gradients, the zoo, and their cost."""

from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pneumobatch.config import Job, Network, read_job
from pneumobatch.models import int8
from pneumobatch.models.attention import GatedAttention, SideBranchAttention, attention
from pneumobatch.models.networks import build, cost, standardises
from pneumobatch.models.weights import load_network
from pneumobatch.training import grid
from tests.untrained import write_bundle

JOBS = Path(__file__).parents[2] / "jobs"
COMPARED = grid.rows(Job.model_validate(read_job(JOBS / "paper-comparison.toml")))
SWITCHES = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]


@pytest.mark.parametrize("name", ["attention_resnet18", "attention_resnet50"])
@pytest.mark.parametrize("size", [33, 64, 97])
def test_attention_starts_identical_to_the_plain_backbone(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = build(Network(name=name, image_size=size)).eval()
    plain = build(Network(name=name.removeprefix("attention_"))).eval()
    missing, unexpected = plain.load_state_dict(network.state_dict(), strict=False)
    assert not missing
    assert unexpected  # the attention's own weights
    x = torch.rand(2, 1, size, size)
    assert torch.equal(network(x), plain(x))


def test_a_standardised_film_is_the_same_at_any_brightness_and_contrast() -> None:
    torch.manual_seed(0)
    network = build(Network(name="attention_resnet18", image_size=64, standardise=True)).eval()
    film = torch.rand(3, 1, 64, 64)
    torch.testing.assert_close(network(0.2 + 0.5 * film), network(film), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(network(film.flip(2)), network(film), rtol=1e-3, atol=1e-4)  # it still looks at it
    assert network(torch.full((1, 1, 64, 64), 0.3)).isfinite().all()  # a blank film divides by nothing


def test_a_mirrored_network_scores_a_film_and_its_mirror_image_alike() -> None:
    torch.manual_seed(0)
    network = build(Network(name="attention_resnet18", image_size=64, mirrored=True))
    plain = build(Network(name="attention_resnet18", image_size=64))
    plain.load_state_dict(network.state_dict())
    film = torch.rand(3, 1, 64, 64)
    network.eval(), plain.eval()
    torch.testing.assert_close(network(film), (plain(film) + plain(film.flip(3))) / 2)
    torch.testing.assert_close(network(film.flip(3)), network(film))
    network.train(), plain.train()
    torch.testing.assert_close(network(film), plain(film))  # training is not slowed down


@pytest.mark.parametrize(("side", "channel", "spatial"), SWITCHES)
def test_each_part_is_a_switch_and_learns(side: bool, channel: bool, spatial: bool) -> None:
    torch.manual_seed(0)
    block = attention(16, side_branches=side, channel_gate=channel, spatial_gate=spatial)
    assert len(list(block.children())) == side + (channel or spatial)
    if not len(block):
        return
    for parameter in block.parameters():  # away from the zero start, where later layers hide earlier ones
        nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else nn.init.constant_(parameter, 0.1)
    x = torch.randn(3, 16, 7, 9)
    block(x).square().mean().backward()
    silent = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@given(st.integers(1, 21), st.integers(1, 21))
@settings(max_examples=40, deadline=None)
def test_side_branches_restore_every_size(height: int, width: int) -> None:
    block = SideBranchAttention(8, 4, 8).eval()
    assert block(torch.randn(1, 8, height, width)).shape == (1, 8, height, width)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_bf16_gradients_agree_with_fp32_on_maps_of_any_size(size: int) -> None:
    torch.manual_seed(0)
    block = SideBranchAttention(64, 8, 64).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nn.init.normal_(block.final.weight)
    x = torch.randn(16, 64, size, size)
    gradients = []
    for half in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            block(x).float().square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in block.named_parameters()})  # type: ignore[union-attr]
    for name, exact in gradients[0].items():
        error = (gradients[1][name] - exact).norm() / exact.norm().clamp_min(1e-3)
        assert error < 0.1, (name, float(error))


def test_side_branches_equal_two_separate_branches() -> None:
    torch.manual_seed(0)
    block = SideBranchAttention(6, 4, 1).eval()
    nn.init.normal_(block.final.weight)
    x = torch.randn(2, 6, 9, 10)
    total = x.clone()
    for branch in range(2):  # each on its own, restored by the library's transposed convolution
        part = slice(4 * branch, 4 * branch + 4)
        u = torch.conv2d(x, block.branches.weight[part], padding=1) / (1 + block.branches_norm.eps) ** 0.5
        u = torch.conv2d(u.relu(), block.reduce.weight[part], stride=2, padding=1) / (1 + block.reduce_norm.eps) ** 0.5
        total += torch.conv_transpose2d(u.relu(), block.restore.weight[part], None, 2, 1, (0, 1))
    assert block.restore.bias is not None
    expected = x + block.final(total + block.restore.bias.reshape(1, -1, 1, 1))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_gates_equal_fusing_the_concatenated_maps() -> None:
    torch.manual_seed(0)
    block = GatedAttention(16, channel_gate=True, spatial_gate=True).eval()
    nn.init.normal_(block.fuse.weight)
    assert block.squeeze and block.excite and block.fuse_channel and block.fuse_spatial
    x = torch.randn(2, 16, 8, 8)
    channel = torch.sigmoid(block.excite(block.squeeze(x.mean((2, 3), keepdim=True)).relu()))
    joined = torch.cat([x * channel, x * block.spatial_map(x)], 1)
    kernel = torch.cat([block.fuse_channel.weight, block.fuse_spatial.weight], 1)
    torch.testing.assert_close(block(x), x + block.fuse(torch.conv2d(joined, kernel)), rtol=1e-4, atol=1e-4)


def test_side_branch_net_is_literal() -> None:
    config = Network(name="side_branch_net", image_size=32)
    network = build(config).eval()
    assert network(torch.rand(2, 1, 37, 32)).shape == (2, 2)
    parameters, _ = cost(network, 32)
    _, plain = cost(build(config.model_copy(update={"side_branches": False, "channel_gate": False})), 32)
    one_convolution = 64 * 64 * 9 * 32 * 32
    assert plain >= 8 * one_convolution
    assert parameters > 1_000_000
    assert 64 * 64 * 9 * 512 * 512 / 1e9 == pytest.approx(9.66, abs=0.01)  # what its help text says


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [("resnet50", 23.5, 4.09), ("attention_resnet50", 30.2, 4.99), ("attention_resnet18", 11.7, 1.95)],
)
def test_cost(name: str, millions: float, giga: float) -> None:
    parameters, multiply_adds = cost(build(Network(name=name)), 224)
    assert parameters / 1e6 == pytest.approx(millions, rel=0.01)
    assert multiply_adds / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("row", COMPARED)
def test_every_network_of_the_papers_comparison_scores_films_of_the_jobs_size(row: str) -> None:
    config = COMPARED[row].network
    # Of the largest only shapes are computed: they have some hundred million weights.
    device = "meta" if row in {"vgg16_bn", "BiT resnet152x2"} else "cpu"
    with torch.device(device), torch.inference_mode():
        network = build(config).eval()
        logits = network(torch.rand(1, 1, config.image_size, config.image_size))
    assert logits.shape == (1, 2)
    assert device == "meta" or logits.isfinite().all()


def test_a_bundles_convolutions_standardise_their_weights_once_and_score_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(Network(name="timm/resnetv2_50x1_bit", image_size=64)).eval()
    for module in network.modules():  # weights away from a mean of 0 and a spread of 1, and no residual branch silent
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.3, 2)
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.1)
    saved = write_bundle(str(tmp_path), name="timm/resnetv2_50x1_bit", network=network)
    loaded = load_network(str(tmp_path), saved)
    films = torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(films), network(films), rtol=1e-4, atol=1e-4)
        assert network(films).std() > 1e-2  # or they would agree on nothing
    assert not any(standardises(module) for module in loaded.modules())
    convolutions = int8.convolutions(loaded)
    assert len(convolutions) == 52  # neither the stem nor the head
    assert set(convolutions) == set(int8.convolutions(network))
    some = next(iter(convolutions.values())).weight
    torch.testing.assert_close(some.mean((1, 2, 3)), torch.zeros(len(some)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "attention_resnet18", "timm/resnet10t", "timm/convnext_atto"])
def test_a_plain_backbones_weights_of_other_classes_are_a_start(name: str, tmp_path: Path) -> None:
    plain = name.removeprefix("attention_")
    if plain.startswith("timm/"):
        import timm

        given = timm.create_model(plain.removeprefix("timm/"), num_classes=1000)
    else:
        given = torchvision.models.get_model(plain)
    path = tmp_path / "weights.safetensors"
    save_file(given.state_dict(), path)
    network = build(Network(name=name, image_size=64, weights=str(path)))
    loaded, wanted = network.backbone.state_dict(), given.state_dict()
    same = [key for key in wanted if key in loaded and torch.equal(loaded[key], wanted[key])]
    assert len(same) == len(wanted) - 2  # but weight and bias of the classifier
    assert network.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 2)


def test_a_whole_networks_weights_are_a_start_and_others_are_named(tmp_path: Path) -> None:
    whole, path = build(Network(name="attention_resnet18")), tmp_path / "weights.safetensors"
    save_file(whole.state_dict(), path)
    again = build(Network(name="attention_resnet18", weights=str(path)))
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in again.state_dict().items())

    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=rf"network\.weights: {path} {message}"):
            build(Network(name=name, weights=str(path)))

    refused("resnet18", r"does not fit resnet18: it has backbone\.layer1\.2\.")
    refused("resnet34", r"does not fit resnet34: it lacks backbone\.layer")
    state = {key.removeprefix("backbone."): tensor for key, tensor in whole.state_dict().items()}
    del state["layer1.0.conv1.weight"]
    save_file(state, path)
    refused("attention_resnet18", r"does not fit attention_resnet18: it lacks backbone\.layer1\.0\.conv1\.weight")
    torch.save(whole.state_dict(), path)
    refused("attention_resnet18", r"cannot be read as safetensors")
    path.unlink()
    refused("attention_resnet18", r"cannot be read as safetensors")


def test_pretrained_weights_without_a_network_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    with pytest.raises(ValueError, match=r"network\.weights: those of resnet18 cannot be downloaded here"):
        build(Network(name="resnet18", weights="pretrained"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Network(name="resnet19"), "network.name: 'resnet19' is no network"),
        (Network(name="timm/resnet5"), "timm has no 'resnet5'; near: "),
        (Network(name="side_branch_net", weights="pretrained"), "no pretrained weights"),
    ],
)
def test_unknown_networks_are_named(config: Network, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config)
