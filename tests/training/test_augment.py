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
    config = Augmentation(
        crop_area=(0.2, 0.8), contrast=0.9, brightness=0.5, gamma=0.5, sharpness=1.0, erase=1.0, margins=0.4
    )
    films = torch.randint(0, 256, (16, 60, 60), dtype=torch.uint8)
    result = augment.apply(films, augment.draw(config, 16, torch.Generator().manual_seed(1)), 48)
    assert result.shape == (16, 1, 48, 48)
    assert result.dtype == torch.float32
    assert 0 <= float(result.min())
    assert float(result.max()) <= 1
    again = augment.apply(films, augment.draw(config, 16, torch.Generator().manual_seed(2)), 48)
    assert ((result - again).abs().mean((1, 2, 3)) > 0.01).all()


def test_sharpness_changes_detail_and_leaves_the_rest() -> None:
    config = NOTHING.model_copy(update={"sharpness": 1.0})
    axis = torch.linspace(0, 1, 96)
    broad = 128 + 50 * torch.sin(2 * torch.pi * axis).expand(96, 96)
    noise = torch.randint(-20, 21, (32, 96, 96), generator=torch.Generator().manual_seed(0))
    films = (broad + noise).round().to(torch.uint8)
    fate = augment.draw(config, 32, torch.Generator().manual_seed(1))
    result, before = augment.apply(films, fate, 96), augment.plain(films)

    def detail(x: torch.Tensor) -> torch.Tensor:
        return (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3)).sqrt()

    ratio = detail(result) / detail(before)
    assert ratio.min() < 0.7 and ratio.max() > 1.3  # some films smoothed, some sharpened
    coarse = torch.nn.functional.avg_pool2d(result - before, 24)
    assert coarse.abs().max() < 0.02  # what is broader than the detail stays


def test_shading_is_a_plane_through_the_same_grey() -> None:
    config = NOTHING.model_copy(update={"shading": 0.3})
    films = torch.full((32, 48, 48), 128, dtype=torch.uint8)
    result = augment.apply(films, augment.draw(config, 32, torch.Generator().manual_seed(1)), 48)[:, 0] * 255 / 128
    torch.testing.assert_close(result.mean((1, 2)), torch.ones(32), rtol=0, atol=1e-4)
    right, down = result[:, 0, -1] - result[:, 0, 0], result[:, -1, 0] - result[:, 0, 0]
    assert right.abs().max() <= 0.6 and right.std() > 0.2 and down.std() > 0.2
    middle = (result[:, 0, 0] + result[:, -1, -1]) / 2
    torch.testing.assert_close(middle, torch.ones(32), rtol=0, atol=1e-4)


def test_margins_are_blank_on_half_of_the_films_which_they_cover_or_shrink() -> None:
    axis = torch.linspace(60, 200, 96)
    films = (axis + axis[:, None]).div(2).to(torch.uint8).expand(400, 96, 96)  # brighter to the right and downwards
    fate = augment.draw(NOTHING.model_copy(update={"margins": 0.2}), 400, torch.Generator().manual_seed(0))
    result, before = augment.apply(films, fate, 96)[:, 0], augment.plain(films)[:, 0]
    x, y, half_x, half_y, grey = (fate[:, place] for place in range(17, 22))
    left, right, top, bottom = ((1 + side) / 2 for side in (x - half_x, -x - half_x, y - half_y, -y - half_y))
    framed = left > 0
    assert 160 < framed.sum() < 240
    assert 0.4 < (grey[framed] == 0).float().mean() < 0.6 and 0.15 < (grey[framed] == 1).float().mean() < 0.35
    torch.testing.assert_close(result[~framed], before[~framed])
    changed = (result - before).abs() > 0.01
    covered = framed & ~changed[:, 20:76, 20:76].any(2).any(1)
    assert 0.35 < covered.sum() / framed.sum() < 0.65
    place = (torch.arange(96) + 0.5) / 96
    for film in framed.nonzero()[:, 0].tolist():
        across = (place >= left[film]) & (place <= 1 - right[film])
        inside = across & ((place >= top[film]) & (place <= 1 - bottom[film]))[:, None]
        assert (result[film][~inside] == grey[film]).all()
        if not covered[film]:  # the whole film lies within: its corners are dark and bright as they were
            seen = result[film][inside]
            assert seen.min() < before.min() + 0.02 and seen.max() > before.max() - 0.02


def test_a_film_has_the_same_fate_in_any_part_of_the_batch() -> None:
    config = Augmentation(gamma=0.4, sharpness=1.0, erase=0.5, margins=0.2)
    films = torch.randint(0, 256, (8, 55, 55), dtype=torch.uint8)
    fate = augment.draw(config, 8, torch.Generator().manual_seed(3))
    whole = augment.apply(films, fate, 48)
    for rank in range(2):  # as two workers share a batch
        torch.testing.assert_close(augment.apply(films[rank::2], fate[rank::2], 48), whole[rank::2])


def test_crops_stay_inside_the_film() -> None:
    config = NOTHING.model_copy(update={"crop_area": (0.1, 1.0), "crop_aspect": 2.0})
    fate = augment.draw(config, 500, torch.Generator().manual_seed(0))
    scale_x, shift_x, scale_y, shift_y = fate[:, 0], fate[:, 2], fate[:, 4], fate[:, 5]
    assert (scale_x.abs() + shift_x.abs() <= 1 + 1e-6).all()
    assert (scale_y.abs() + shift_y.abs() <= 1 + 1e-6).all()
