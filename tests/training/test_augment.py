"""Augmentation: switched off it is the plain film; drawn for the global batch it does not depend on the workers."""

import torch

from pneumobatch.config import PAPER, Augmentation
from pneumobatch.training import augment

NOTHING = Augmentation(**PAPER["augmentation"])


def test_switched_off_it_is_the_plain_film() -> None:
    films = torch.randint(0, 256, (5, 48, 48), dtype=torch.uint8)
    fate = augment.draw(NOTHING, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment.apply(films, fate, 48), augment.plain(films), rtol=0, atol=1e-5)


def test_a_flip_mirrors() -> None:
    films = torch.randint(0, 256, (5, 48, 48), dtype=torch.uint8)
    fate = augment.draw(NOTHING.model_copy(update={"flip": 1.0}), 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment.apply(films, fate, 48), augment.plain(films).flip(3), rtol=0, atol=1e-5)


def test_strong_augmentation_stays_in_range_and_changes_every_film() -> None:
    config = Augmentation(crop_area=(0.2, 0.8), contrast=0.9, brightness=0.5, gamma=0.5, rotation_degrees=20, erase=1.0)
    films = torch.randint(0, 256, (16, 60, 60), dtype=torch.uint8)
    result = augment.apply(films, augment.draw(config, 16, torch.Generator().manual_seed(1)), 48)
    assert result.shape == (16, 1, 48, 48)
    assert result.dtype == torch.float32
    assert 0 <= float(result.min())
    assert float(result.max()) <= 1
    again = augment.apply(films, augment.draw(config, 16, torch.Generator().manual_seed(2)), 48)
    assert ((result - again).abs().mean((1, 2, 3)) > 0.01).all()


def test_crops_stay_inside_the_film() -> None:
    config = NOTHING.model_copy(update={"crop_area": (0.1, 1.0), "crop_aspect": 2.0})
    fate = augment.draw(config, 500, torch.Generator().manual_seed(0))
    scale_x, shift_x, scale_y, shift_y = fate[:, 0], fate[:, 2], fate[:, 4], fate[:, 5]
    assert (scale_x.abs() + shift_x.abs() <= 1 + 1e-6).all()
    assert (scale_y.abs() + shift_y.abs() <= 1 + 1e-6).all()
