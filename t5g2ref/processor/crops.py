"""Pan-and-scan: where a long picture is cut.

Sizes and boxes are (width, height) and (left, top, right, bottom) in pixels, as Pillow has them.
"""

from __future__ import annotations

Box = tuple[int, int, int, int]


def pan_and_scan(
    size: tuple[int, int], *, min_crop: int = 256, max_crops: int = 4, min_ratio: float = 1.2
) -> list[Box]:
    """The crops of an image of size (width, height), in reading order; none where it is not elongated enough.

    The long side is cut into equal parts, the last shorter where it does not divide:

        parts = long / short, halves up; at most long // min_crop; then at least 2; then at most max_crops
        none if long / short < min_ratio, or if a part or the short side is below min_crop

    So (1024, 512) gives [(0, 0, 512, 512), (512, 0, 1024, 512)], and no image under 256 pixels high or wide
    gives any. The defaults are the released processor's. Raises ValueError for sizes or limits out of range.
    Source: transformers `Gemma3ImageProcessorPil.pan_and_scan`, defaults in `Gemma3Processor.images_kwargs`.
    """
    width, height = size
    if min(width, height) < 1:
        raise ValueError(f"size must be (width, height), both at least 1; found {size}")
    if not 1 <= max_crops <= min_crop:  # more parts than pixels in a part could leave the last one empty
        raise ValueError(f"need 1 <= max_crops <= min_crop; found max_crops={max_crops}, min_crop={min_crop}")
    long, short = max(size), min(size)
    if long / short < min_ratio:
        return []
    halves_up = (2 * long + short) // (2 * short)
    parts = min(max(2, min(halves_up, long // min_crop)), max_crops)
    step = -(-long // parts)
    if min(step, short) < min_crop:
        return []
    spans = [(start, min(start + step, long)) for start in range(0, parts * step, step)]
    if width >= height:
        return [(left, 0, right, height) for left, right in spans]
    return [(0, top, width, bottom) for top, bottom in spans]
