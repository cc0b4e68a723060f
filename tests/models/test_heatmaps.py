"""Heat maps: the evidence adds up to what the network says, and lies where the film gave it."""

import pytest
import torch

from pneumobatch.config import Network
from pneumobatch.models.heatmaps import NoFeatureMapError, heat_maps
from pneumobatch.models.networks import Classifier, build


def network(name: str, size: int, **switches: bool) -> Classifier:
    torch.manual_seed(0)
    return build(Network(name=name, image_size=size, **switches)).eval()


def margin(classifier: Classifier, films: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """Pneumonia minus normal, without the head's bias."""
    with torch.no_grad():
        return (classifier(films) - head.bias) @ torch.tensor([-1.0, 1.0])


def test_the_evidence_adds_up_to_the_margin() -> None:
    classifier, films = network("side_branch_net", 32), torch.rand(2, 1, 32, 32)  # its feature map is the film's size
    found = heat_maps(classifier, films)
    head = classifier.backbone.fc
    torch.testing.assert_close(found.evidence_BSS.sum((1, 2)), margin(classifier, films, head), rtol=1e-3, atol=1e-5)
    assert found.evidence_BSS.std(dim=(1, 2)).min() > 0 and found.cells == (32, 32)


def test_a_feature_map_of_one_cell_is_the_margin_everywhere() -> None:
    classifier, films = network("attention_resnet18", 32), torch.rand(2, 1, 32, 32)
    found = heat_maps(classifier, films)
    expected = margin(classifier, films, classifier.backbone.fc[1])
    torch.testing.assert_close(found.evidence_BSS, expected[:, None, None].expand(-1, 32, 32), rtol=1e-3, atol=1e-5)


def test_a_network_that_scores_the_mirror_image_as_well_has_one_map_of_both() -> None:
    films = torch.rand(2, 1, 32, 32)
    classifier = network("side_branch_net", 32, mirrored=True)
    found, mirrored = heat_maps(classifier, films), heat_maps(classifier, films.flip(3))
    expected = margin(classifier, films, classifier.backbone.fc)
    torch.testing.assert_close(found.evidence_BSS.sum((1, 2)), expected, rtol=1e-3, atol=1e-5)
    for map_, other in ((found.evidence_BSS, mirrored.evidence_BSS), (found.gate_BSS, mirrored.gate_BSS)):
        torch.testing.assert_close(map_.flip(2), other, rtol=1e-3, atol=1e-6)


def test_a_film_has_the_maps_that_it_has_alone_and_the_network_keeps_its_answer() -> None:
    classifier, films = network("attention_resnet18", 64), torch.rand(3, 1, 64, 64)
    before = classifier(films)
    whole, alone = heat_maps(classifier, films), heat_maps(classifier, films[1:2])
    torch.testing.assert_close(whole.evidence_BSS[1], alone.evidence_BSS[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(whole.gate_BSS[1], alone.gate_BSS[0], rtol=1e-3, atol=1e-6)
    assert torch.equal(before, classifier(films))
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_the_gate_is_the_networks_own() -> None:
    films = torch.rand(2, 1, 64, 64)
    gate = heat_maps(network("attention_resnet18", 64), films).gate_BSS
    assert gate is not None and gate.shape == (2, 64, 64) and 0 <= gate.min() < gate.max() <= 1
    assert heat_maps(network("attention_resnet18", 64, spatial_gate=False), films).gate_BSS is None
    assert heat_maps(network("resnet18", 64), films).gate_BSS is None


@pytest.mark.parametrize("name", ["timm/efficientnet_b0", "timm/swin_tiny_patch4_window7_224"])
def test_networks_of_others_have_a_map_of_their_last_features(name: str) -> None:
    found = heat_maps(network(name, 64), torch.rand(1, 1, 64, 64))
    assert found.evidence_BSS.shape == (1, 64, 64) and found.evidence_BSS.std() > 0


def test_a_network_of_tokens_has_none() -> None:
    with pytest.raises(NoFeatureMapError, match="no feature map"):
        heat_maps(network("timm/vit_tiny_patch16_224", 64), torch.rand(1, 1, 64, 64))
