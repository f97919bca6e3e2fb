"""A view: a square (or cubic) window onto a case, so many pixels out, covering so many pixels of level 0.

+-----------------------+
|  wide view            |     All views of a patch share one centre, the centre of the target,
|     +-----------+     |     and one size_px: same memory, another trade of extent for detail.
|     |  target   |     |
|     +-----------+     |     downsampling = field_of_view_px0 / size_px, the same on every axis
|                       |     unless the case is anisotropic.
+-----------------------+
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class View:
    """A window of ``size_px`` pixels that covers ``field_of_view_px0`` pixels of level 0; axes (y, x) or (z, y, x).

    Raises:
        ValueError: when the two tuples differ in length, or a number is not positive.
    """

    size_px: tuple[int, ...]
    field_of_view_px0: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.size_px) != len(self.field_of_view_px0):
            raise ValueError(
                f"a view needs one field of view per axis: {self.size_px} px, {self.field_of_view_px0} px0"
            )
        if min(*self.size_px, *self.field_of_view_px0) < 1:
            raise ValueError(f"a view is at least one pixel wide: {self.size_px} px over {self.field_of_view_px0} px0")

    @property
    def downsampling(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of the view, per axis."""
        return tuple(fov / size for fov, size in zip(self.field_of_view_px0, self.size_px, strict=True))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one patch consists of: the views of the image, and the target where the annotators' labels are read.

    ``annotators`` fixes the order of the label planes; one who drew nothing in a case yields a plane of IGNORE.
    """

    views: tuple[View, ...]
    target: View
    annotators: tuple[str, ...]
