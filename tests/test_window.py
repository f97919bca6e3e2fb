"""Windows: levels, spans, mirrors. A tiny picture and the numbers that must come out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayters.patches.view import View
from rayters.patches.window import Span, downsampling, level_for, mirrored, windows

PYRAMID = ((1000, 800), (500, 400), (250, 200))


def view(size: int, field: int) -> View:
    return View(size_px=(size, size), field_of_view_px0=(field, field))


@pytest.mark.parametrize(("field", "level"), [(64, 0), (127, 0), (128, 1), (200, 1), (256, 2), (4096, 2)])
def test_the_level_is_the_coarsest_that_is_still_as_fine_as_the_view(field: int, level: int) -> None:
    assert level_for(view(64, field), PYRAMID) == level


def test_a_view_finer_than_level_zero_is_read_from_level_zero() -> None:
    assert level_for(view(64, 32), PYRAMID) == 0


def test_an_anisotropic_level_serves_only_views_that_are_coarse_on_every_axis_it_is() -> None:
    shapes = ((40, 512, 512), (40, 256, 256), (20, 128, 128))
    fine_z = View(size_px=(16, 64, 64), field_of_view_px0=(16, 256, 256))
    assert level_for(fine_z, shapes) == 1
    assert downsampling(shapes, 2) == (2.0, 4.0, 4.0)


def test_odd_sides_do_not_bend_the_grid() -> None:
    assert downsampling(((1001, 999), (501, 500), (251, 250)), 2) == (4.0, 4.0)
    assert downsampling(((1001, 999), (500, 499)), 1) == (2.0, 2.0)


def test_all_views_share_the_centre_of_the_target() -> None:
    target, wide = view(64, 64), view(64, 256)
    y, x = windows(wide, target, np.array([[100, 200]]), (4.0, 4.0)).spans(0)
    assert (y.start, y.extent, y.size) == ((100 + 32 - 128) / 4, 64, 64)
    assert x.start * 4 + 128 == 200 + 32


def test_an_exact_window_is_a_plain_slice() -> None:
    span = Span(start=10.0, extent=4.0, size=4)
    assert span.covered().tolist() == span.nearest().tolist() == [10, 11, 12, 13]


def test_a_coarser_window_is_the_mean_of_the_area_it_covers() -> None:
    span = Span(start=0.0, extent=6.0, size=4)  # 1.5 pixels each
    assert np.allclose(span.weights() @ np.array([0, 3, 6, 9, 12, 15], dtype=np.float32), [1, 5, 10, 14])


def test_a_shifted_window_weighs_its_first_and_last_pixel_by_what_it_covers_of_them() -> None:
    span = Span(start=0.5, extent=2.0, size=1)
    assert span.covered().tolist() == [0, 1, 2]
    assert np.allclose(span.weights(), [[0.25, 0.5, 0.25]])


def test_a_finer_window_interpolates_and_keeps_a_ramp_a_ramp() -> None:
    span = Span(start=4.0, extent=4.0, size=8)
    ramp = span.covered().astype(np.float32)
    assert np.allclose(span.weights() @ ramp, 4 - 0.25 + np.arange(8) * 0.5)


def test_labels_take_the_pixel_under_the_middle() -> None:
    assert Span(start=0.0, extent=8.0, size=4).nearest().tolist() == [1, 3, 5, 7]
    assert Span(start=0.0, extent=2.0, size=4).nearest().tolist() == [0, 0, 1, 1]


def test_the_mirror_stands_on_the_border_pixel_and_reflects_again_and_again() -> None:
    assert mirrored(np.arange(-3, 6), 3).tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]
    assert mirrored(np.arange(-2, 3), 1).tolist() == [0, 0, 0, 0, 0]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(-80, 90), min_size=1, max_size=4),
    st.integers(1, 60),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.integers(8, 70),
)
def test_the_hull_holds_every_pixel_and_every_mirrored_pixel_of_every_window(
    origins: list[int], extent: int, down: float, field: int
) -> None:
    target, wide = View(size_px=(8,), field_of_view_px0=(8,)), View(size_px=(8,), field_of_view_px0=(field,))
    each = windows(wide, target, np.array(origins)[:, None], (down,))
    (low,), (high,) = each.hull((extent,))
    assert 0 <= low < high <= extent
    for patch in range(len(origins)):
        (span,) = each.spans(patch)
        seen = mirrored(span.covered(), extent)
        assert low <= seen.min()
        assert seen.max() < high
