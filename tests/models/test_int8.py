"""Convolutions in int8: what they compute, which they are, and where they are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pneumobatch.config import Network
from pneumobatch.models import bundle as bundles
from pneumobatch.models import hardware, int8, scoring
from pneumobatch.models.networks import build
from pneumobatch.models.weights import load_network

CPU = torch.device("cpu")


def needs_vnni() -> None:
    if not hardware.computes_int8():
        pytest.skip("this CPU has neither VNNI nor AMX")


def ranges_of(network: nn.Module, films_B1SS: Tensor) -> dict[str, tuple[float, float]]:
    with int8.watched(network) as seen, torch.inference_mode():
        network(films_B1SS)
    return {name: (-float(least), float(greatest)) for name, (least, greatest) in seen.items()}


@given(
    inputs=st.sampled_from([16, 24, 64]), outputs=st.sampled_from([1, 8, 40]), kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]), low=st.sampled_from([0.0, -0.3, -4.0]), high=st.sampled_from([0.5, 3.0, 20.0]),
    bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_a_convolution_is_that_of_rounded_weights_over_a_rounded_input(
    inputs: int, outputs: int, kernel: int, stride: int, low: float, high: float, bias: bool, seed: int
) -> None:
    needs_vnni()
    torch.manual_seed(seed)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    x_BIHW = torch.empty(2, inputs, 9, 7).uniform_(low * 1.5, high * 1.5)  # some of it outside the range
    scale = (high - low) / 255
    zero = round(-low / scale)
    rounded_x = (torch.clamp(torch.round(x_BIHW.double() / scale) + zero, 0, 255) - zero) * scale
    weight = convolution.weight.detach().double()
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    bias_O = None if convolution.bias is None else convolution.bias.detach().double()
    expected = F.conv2d(rounded_x, torch.round(weight / step) * step, bias_O, stride, kernel // 2)
    found = int8.Int8Conv2d(convolution, low, high)(x_BIHW)
    assert found.dtype == torch.float32
    # One step of one input that float and double round differently is allowed, and the float sums' last digits.
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=float(2 * scale * weight.abs().max()))


def test_it_is_the_backbone_that_is_quantised() -> None:
    attention, plain = (build(Network(name=name, image_size=64)) for name in ("attention_resnet18", "resnet18"))
    names = int8.convolutions(plain)
    assert set(int8.convolutions(attention)) == set(names)
    assert len(names) == 19  # 16 in the blocks and 3 beside them, but not the stem
    assert not int8.convolutions(build(Network(name="timm/vit_tiny_patch16_224", image_size=64)))


def test_ranges_are_those_of_all_films_whatever_their_order() -> None:
    torch.manual_seed(0)
    network = build(Network(name="resnet18", image_size=64)).eval()
    films = torch.rand(6, 1, 64, 64) * torch.linspace(0.2, 1, 6)[:, None, None, None]
    whole = ranges_of(network, films)
    with int8.watched(network) as seen, torch.inference_mode():
        for film in films.flip(0):
            network(film[None])
    network(films)  # no longer watched
    for name, (low, high) in whole.items():
        assert low <= 0 <= high and low < high
        least, greatest = seen[name].tolist()
        assert (-least, greatest) == pytest.approx((low, high), rel=1e-4, abs=1e-5)


def test_ranges_of_an_older_version_are_refused_and_change_nothing() -> None:
    network = build(Network(name="resnet18", image_size=64)).eval()
    with pytest.raises(ValueError, match=r"lacks for 18 of 19 convolutions: .* leave it at auto"):
        int8.quantise(network, {next(iter(int8.convolutions(network))): (0.0, 1.0)})
    assert len(int8.convolutions(network)) == 19


@pytest.fixture(scope="module")
def quantisable(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., bundles.Bundle]) -> str:
    """A bundle with the ranges of some noise."""
    uri = str(tmp_path_factory.mktemp("int8"))
    torch.manual_seed(0)
    plain = make_bundle(uri)
    make_bundle(uri, ranges=ranges_of(load_network(uri, plain), torch.rand(8, 1, 64, 64)))
    return uri


@pytest.mark.parametrize("compiling", [False, True])
def test_a_network_in_int8_agrees_with_fp32(
    quantisable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiling: bool
) -> None:
    needs_vnni()
    if compiling and hardware.compiler() is None:
        pytest.skip("no C++ compiler is here")
    monkeypatch.setenv("PNEUMOBATCH_CACHE", str(tmp_path))
    bundle = bundles.load(quantisable)
    films = torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8)
    exact = scoring.eager(quantisable, bundle, "fp32", CPU)(films)
    if compiling:
        found = scoring.compiled(quantisable, bundle, "int8", 4, CPU)(films)
        path = hardware.compiled_path(bundle, "int8", 4, "cpu", torch.get_num_threads())
        assert path.exists() and path != hardware.compiled_path(bundle, "bf16", 4, "cpu", torch.get_num_threads())
    else:
        found = scoring.eager(quantisable, bundle, "int8", CPU)(films)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.05)


def test_ranges_belong_to_the_model(quantisable: str) -> None:
    bundle = bundles.load(quantisable)
    assert bundle.identity() != bundle.model_copy(update={"ranges": {}}).identity()
    name, (low, high) = next(iter(bundle.ranges.items()))
    wider = bundle.ranges | {name: (low, high * 2)}
    assert bundle.model_copy(update={"ranges": wider}).identity() != bundle.identity()


def test_int8_is_refused_where_it_cannot_be(quantisable: str, bundle_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, older = bundles.load(quantisable), bundles.load(bundle_uri)
    with pytest.raises(ValueError, match="int8 needs CPUs with VNNI or AMX, and no GPU; this machine has a GPU"):
        hardware.scoring_precision("int8", "cuda", bundle)
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    with pytest.raises(ValueError, match="this machine has neither: leave it at auto"):
        scoring.eager(quantisable, bundle, "int8", CPU)  # the scorer asks too: its node may be another
    assert hardware.scoring_precision("auto", "cpu", bundle) == "fp32"
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert hardware.scoring_precision("int8", "cpu", bundle) == "int8"
    with pytest.raises(ValueError, match=f"bundle {older.model_id} lacks"):
        hardware.scoring_precision("int8", "cpu", older)
