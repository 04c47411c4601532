"""Crop boxes from tables of uniform numbers, vectorised over the batch.

A box is (top, left, height, width) in pixels.
"""

import numpy as np

MAX_TRIES = 10  # of the rejection loop, as torchvision's `RandomResizedCrop.get_params`
RANDOM_CROP_DRAWS = 2 * MAX_TRIES + 2
LOOP_FREE_CROP_DRAWS = 4


def _areas_and_ratios(
    area_draws: np.ndarray,
    ratio_draws: np.ndarray,
    image_area: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths, rounded to pixels, of boxes with uniform area and log-uniform aspect ratio."""
    area = image_area * (scale[0] + area_draws * (scale[1] - scale[0]))
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(log_low + ratio_draws * (log_high - log_low))
    return np.rint(np.sqrt(area / aspect)).astype(np.int64), np.rint(np.sqrt(area * aspect)).astype(np.int64)


def _place(
    position_draws: np.ndarray, heights: np.ndarray, widths: np.ndarray, box_heights: np.ndarray, box_widths: np.ndarray
) -> np.ndarray:
    """Boxes [B, 4] at uniformly drawn integer positions inside the images."""
    top = (position_draws[:, 0] * (heights - box_heights + 1)).astype(np.int64)
    left = (position_draws[:, 1] * (widths - box_widths + 1)).astype(np.int64)
    return np.stack([top, left, box_heights, box_widths], axis=1)


def random_crop_boxes(
    draws: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Random resized crop with the usual rejection loop, as torchvision's `RandomResizedCrop.get_params`.

    Ten (area, aspect ratio) pairs are drawn; the first whose box fits into the image is placed uniformly. When none
    fits, the box is the largest central one whose aspect ratio lies in `ratio`.

    Args:
        draws: uniforms in [0, 1), [B, 22]: ten pairs (area, log ratio), then top and left.
        heights: image heights in pixels [B].
        widths: image widths in pixels [B].
        scale: range of the box area as a fraction of the image area.
        ratio: range of the aspect ratio width / height.

    Returns:
        int64 boxes [B, 4]: top, left, height, width.
    """
    heights, widths = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
    box_heights, box_widths = _areas_and_ratios(
        draws[:, 0 : 2 * MAX_TRIES : 2], draws[:, 1 : 2 * MAX_TRIES : 2], (heights * widths)[:, None], scale, ratio
    )
    fits_height = (box_heights > 0) & (box_heights <= heights[:, None])
    fits = fits_height & (box_widths > 0) & (box_widths <= widths[:, None])
    first = np.argmax(fits, axis=1)
    sample = np.arange(len(draws))
    boxes = _place(draws[:, 2 * MAX_TRIES :], heights, widths, box_heights[sample, first], box_widths[sample, first])
    return np.where(np.any(fits, axis=1, keepdims=True), boxes, _central_boxes(heights, widths, ratio))


def _central_boxes(heights: np.ndarray, widths: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The largest central boxes [B, 4] whose aspect ratio lies in `ratio`."""
    image_ratio = widths / heights
    box_heights = np.where(image_ratio < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    box_widths = np.where(image_ratio > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    return np.stack([(heights - box_heights) // 2, (widths - box_widths) // 2, box_heights, box_widths], axis=1)


def loop_free_crop_boxes(
    draws: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Random resized crop without a rejection loop, as MAE's linear probe uses it.

    One (area, aspect ratio) pair is drawn and the box is clamped to the image.

    Args:
        draws: uniforms in [0, 1), [B, 4]: area, log ratio, top, left.
        heights: image heights in pixels [B].
        widths: image widths in pixels [B].
        scale: range of the box area as a fraction of the image area.
        ratio: range of the aspect ratio width / height.

    Returns:
        int64 boxes [B, 4]: top, left, height, width.
    """
    heights, widths = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
    box_heights, box_widths = _areas_and_ratios(draws[:, 0], draws[:, 1], heights * widths, scale, ratio)
    return _place(draws[:, 2:4], heights, widths, np.clip(box_heights, 1, heights), np.clip(box_widths, 1, widths))


def padded_crop_boxes(draws: np.ndarray, heights: np.ndarray, widths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crops of a fixed size at uniform positions, as used for small images after zero padding.

    Args:
        draws: uniforms in [0, 1), [B, 2]: top, left.
        heights: image heights in pixels [B], >= size[0].
        widths: image widths in pixels [B], >= size[1].
        size: (height, width) of the crop in pixels.

    Returns:
        int64 boxes [B, 4]: top, left, height, width.
    """
    heights, widths = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
    return _place(draws, heights, widths, np.full_like(heights, size[0]), np.full_like(widths, size[1]))
