"""Crop boxes of SimCLR: TensorFlow's distorted bounding box sampler and the central evaluation crop, vectorised.

A box is (top, left, height, width) in pixels. Random boxes are functions of tables of uniform numbers.
"""

import numpy as np

MAX_ATTEMPTS = 100  # of TensorFlow's `sample_distorted_bounding_box`; then the whole image is taken
TABLE_ATTEMPTS = 16  # of them use the table, the others a generator that is seeded with the row
NUMBERS_PER_ATTEMPT = 4  # aspect ratio, height, top, left
CROP_DRAWS = TABLE_ATTEMPTS * NUMBERS_PER_ATTEMPT
FIRST_ATTEMPTS = 4  # are evaluated for all rows at once, further ones only for rows that need them


def sample_crop_boxes(
    uniforms: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    area_range: tuple[float, float] = (0.08, 1.0),
    aspect_range: tuple[float, float] = (3 / 4, 4 / 3),
    min_covered: float = 0.1,
) -> np.ndarray:
    """
    Random crops as TensorFlow's `sample_distorted_bounding_box` draws them with the whole image as the object.

    An attempt draws an aspect ratio uniformly, then a height uniformly among those that the areas allow, then a corner;
    it fails if the box does not fit or covers too little. The first of 100 attempts that succeeds is taken, else the
    whole image. As the object is the whole image, crops under `min_covered` of its area never occur. Boxes do not
    touch the last row and column unless they span the image, as in TensorFlow.

    Args:
        uniforms: float64 in [0, 1), [N, 64]: sixteen times (aspect ratio, height, top, left). Later attempts use a
            Philox generator whose key is made of the row, so that a row alone decides about its box.
        heights: image heights in pixels [N].
        widths: image widths in pixels [N].
        area_range: allowed area as a fraction of the image.
        aspect_range: range of the aspect ratio width / height.
        min_covered: smallest fraction of the image that a crop covers.

    Returns:
        int64 boxes [N, 4].
    """
    ranges = (area_range, aspect_range, min_covered)
    sizes = np.stack([heights, widths], axis=1).astype(np.float64)
    table = uniforms.reshape(-1, TABLE_ATTEMPTS, NUMBERS_PER_ATTEMPT)
    boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    open_rows = np.arange(len(table))
    for numbers in (table[:, :FIRST_ATTEMPTS], table[:, FIRST_ATTEMPTS:], None):
        if not len(open_rows):
            break
        numbers = _later_numbers(uniforms[open_rows]) if numbers is None else numbers[open_rows]
        found, chosen = _first_success(numbers, sizes[open_rows], *ranges)
        boxes[open_rows[found]] = chosen[found]
        open_rows = open_rows[~found]
    return boxes.astype(np.int64)


def _later_numbers(uniforms: np.ndarray) -> np.ndarray:
    """Numbers of the attempts after the table's, [N, 84, 4], from generators keyed with the first two of each row."""
    keys = np.ascontiguousarray(uniforms[:, :2], dtype=np.float64).view(np.uint64)
    shape = (MAX_ATTEMPTS - TABLE_ATTEMPTS, NUMBERS_PER_ATTEMPT)
    return np.stack([np.random.Generator(np.random.Philox(key=key)).random(shape) for key in keys])


def _first_success(
    numbers: np.ndarray,
    sizes: np.ndarray,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
    min_covered: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate all attempts [N, K, 4] of images [N, 2]; whether one succeeds [N], and the first such box [N, 4]."""
    image_height, image_width = sizes[:, :1], sizes[:, 1:]
    image_area = image_height * image_width
    area_low, area_high = area_range[0] * image_area, area_range[1] * image_area
    aspect = aspect_range[0] + numbers[..., 0] * (aspect_range[1] - aspect_range[0])
    lowest, highest = np.rint(np.sqrt(area_low / aspect)), np.rint(np.sqrt(area_high / aspect))
    fitting = np.floor((image_width + 0.5 - 1e-7) / aspect)
    fitting -= np.rint(fitting * aspect) > image_width
    highest = np.where(np.rint(highest * aspect) > image_width, fitting, highest)
    highest = np.minimum(highest, image_height)
    lowest = np.minimum(lowest, highest)
    height = lowest + np.floor(numbers[..., 1] * (highest - lowest + 1))
    # One pixel up or down repairs areas that rounding has moved out of the range.
    height += height * np.rint(height * aspect) < area_low
    height -= height * np.rint(height * aspect) > area_high
    width = np.rint(height * aspect)
    area = height * width
    success = (area >= area_low) & (area <= area_high) & (area >= min_covered * image_area)
    success &= (height > 0) & (width > 0) & (height <= image_height) & (width <= image_width)
    rows, first = np.arange(len(numbers)), np.argmax(success, axis=1)
    height, width = height[rows, first], width[rows, first]
    top = np.floor(numbers[rows, first, 2] * np.maximum(sizes[:, 0] - height, 0))
    left = np.floor(numbers[rows, first, 3] * np.maximum(sizes[:, 1] - width, 0))
    return success[rows, first], np.stack([top, left, height, width], axis=1)


def central_crop_box(height: int, width: int, size: tuple[int, int], proportion: float) -> tuple[int, int, int, int]:
    """
    The central crop of the evaluation: the largest box of the output's aspect ratio, times `proportion`.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        size: output (height, width) in pixels.
        proportion: of the limiting side that is kept.

    Returns:
        The box; sides are computed in float32, as in the official code, and rounded half to even, offsets up.
    """
    single, aspect = np.float32, size[1] / size[0]
    if single(aspect) > single(width) / single(height):
        box_height = np.rint(single(proportion / aspect) * single(width))
        box_width = np.rint(single(proportion) * single(width))
    else:
        box_height = np.rint(single(proportion) * single(height))
        box_width = np.rint(single(proportion * aspect) * single(height))
    box_height, box_width = max(int(box_height), 1), max(int(box_width), 1)
    return (height - box_height + 1) // 2, (width - box_width + 1) // 2, box_height, box_width
