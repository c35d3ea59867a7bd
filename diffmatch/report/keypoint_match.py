"""What a report shows of two images and the matches between their keypoints."""

import base64

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from diffmatch.errors import require
from diffmatch.matching.keypoints import ImageMatches, Keypoints, adaptive_graph, read_image
from diffmatch.matching.keypoints.images import Image, ImageSource
from diffmatch.report.graph_match import score_color
from diffmatch.report.report import Report
from diffmatch.report.values import Metric

__all__ = ["add_keypoint_match", "keypoint_match_metrics", "matches_svg"]

_WIDTH = 1100  # of the drawing, in pixels
_MAX_LINES = 300  # matches that are drawn
_GRAPH_KEYPOINTS = 1500  # of each image, in the drawing of the graphs
_EDGE_COLOR, _POINT_COLOR = "#ffd166", "#ef476f"


def keypoint_match_metrics(matches: ImageMatches) -> list[Metric]:
    """The key figures of matched images."""
    model = "none" if not matches.count else "homography" if matches.planar else "fundamental matrix"
    figures = [
        Metric("matches", matches.count, "", "verified: they agree with one geometry of the two cameras"),
        Metric("found again", int(matches.guided.sum()), "", "of these, under the geometry and not before it"),
        Metric("matches before verification", len(matches.raw_scores), "", "by descriptors, the network or views"),
        Metric("on the homography", int(matches.inliers.sum()), "", "matches that one plane explains"),
        Metric("geometry", model, "", "which explains the matches: one plane, or two cameras in space"),
        Metric("stages", ", ".join(matches.stages), "", "what was tried, until enough matches verified"),
        Metric("time", sum(matches.seconds.values()), "s", "reading and detection included"),
    ]
    if matches.pose is not None:
        cosine = (float(matches.pose.rotation.diagonal().sum()) - 1) / 2
        angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        figures.append(Metric("rotation", angle, "°", "by which the second camera is turned"))
    return figures


def add_keypoint_match(
    report: Report,
    matches: ImageMatches,
    image_a: ImageSource,
    image_b: ImageSource,
    *,
    names: tuple[str, str] = ("A", "B"),
) -> None:
    """Add matched images: key figures, both images with the matches between them, and with their keypoint graphs.

    Args:
        report: what to add to.
        matches: what was found.
        image_a: as it was matched.
        image_b: likewise.
        names: of the images.
    """
    images = [read_image(image, max_pixels=500_000) for image in (image_a, image_b)]
    report.add_headline(keypoint_match_metrics(matches)[:5])
    shown = min(matches.count, _MAX_LINES)
    what = f"{names[0]}, left, and {names[1]}, right"
    report.add_svg(
        matches_svg(matches, images[0], images[1]),
        alt=f"{what}, with lines between {shown} matched points.",
        caption=f"{shown} of {matches.count} verified matches, coloured by score from red (low) to blue (high).",
    )
    report.add_svg(
        _graphs_svg(matches, images[0], images[1]),
        alt=f"{what}, with the adaptive graphs of their keypoints.",
        caption="The adaptive graph over the strongest keypoints of each image; matched keypoints are marked.",
    )
    report.add_metrics(keypoint_match_metrics(matches), folded="All figures")


def matches_svg(matches: ImageMatches, image_a: Image, image_b: Image) -> str:
    """Both images beside each other with lines between matched points, as a still picture.

    Args:
        matches: what was found.
        image_a: pixels of A; may be smaller than those that were matched.
        image_b: pixels of B.
    """
    canvas = _Canvas(image_a, image_b)
    rows = matches.verified.nonzero()[:, 0]
    if len(rows) > _MAX_LINES:
        rows = rows[torch.linspace(0, len(rows) - 1, _MAX_LINES).long()]
    a, b = canvas.place(matches.points_a[rows], 0), canvas.place(matches.points_b[rows], 1)
    lines = [
        f'<path d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}" stroke="{score_color(score)}"/>'
        for (x, y), (u, v), score in zip(a.tolist(), b.tolist(), matches.scores[rows].tolist(), strict=True)
    ]
    return canvas.svg(['<g stroke-width="0.9" stroke-opacity="0.8">', *lines, "</g>"])


def _graphs_svg(matches: ImageMatches, image_a: Image, image_b: Image) -> str:
    canvas = _Canvas(image_a, image_b)
    parts = []
    matched = (matches.points_a, matches.points_b)
    for side, keypoints in enumerate((matches.keypoints_a, matches.keypoints_b)):
        strongest = keypoints.select(keypoints.score.argsort(descending=True, stable=True)[:_GRAPH_KEYPOINTS])
        found = adaptive_graph(_merged(strongest), generator=torch.Generator().manual_seed(0)).graph
        assert found.positions is not None
        edges = found.edges[:, found.edges[0] < found.edges[1]]
        parts.append(_edge_path(canvas.place(found.positions, side), edges))
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in canvas.place(matched[side], side).tolist())
        parts.append(f'<path d="{dots}" stroke="{_POINT_COLOR}" stroke-width="3" stroke-linecap="round"/>')
    return canvas.svg(parts)


def _merged(keypoints: Keypoints) -> Keypoints:
    """One keypoint a place: SIFT gives one for each orientation."""
    _, first = np.unique(keypoints.positions.round().numpy(), axis=0, return_index=True)
    return keypoints.select(torch.from_numpy(np.sort(first)))


def _edge_path(places: Float[Tensor, "n 2"], edges: Int[Tensor, "2 e"]) -> str:
    ends = zip(places[edges[0]].tolist(), places[edges[1]].tolist(), strict=True)
    path = "".join(f"M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}" for (x, y), (u, v) in ends)
    return f'<path d="{path}" stroke="{_EDGE_COLOR}" stroke-width="0.5" stroke-opacity="0.7"/>'


class _Canvas:
    """Two images beside each other, at one scale."""

    def __init__(self, image_a: Image, image_b: Image) -> None:
        self.images = (image_a, image_b)
        widths = [image.original_size[0] for image in self.images]
        self.scale = _WIDTH / sum(widths)
        self.shift = (0.0, widths[0] * self.scale)
        self.height = max(image.original_size[1] for image in self.images) * self.scale

    def place(self, points: Float[Tensor, "n 2"], side: int) -> Float[Tensor, "n 2"]:
        """Where points of an image, in its original pixels, are drawn."""
        return (points + 0.5) * self.scale + points.new_tensor([self.shift[side], 0.0])

    def svg(self, parts: list[str]) -> str:
        """The images with something drawn on top."""
        pictures = [
            f'<image x="{shift:.1f}" y="0" width="{image.original_size[0] * self.scale:.1f}" '
            f'height="{image.original_size[1] * self.scale:.1f}" href="{_jpeg_url(image.color)}"/>'
            for image, shift in zip(self.images, self.shift, strict=True)
        ]
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{self.height:.0f}" '
            f'viewBox="0 0 {_WIDTH} {self.height:.1f}" fill="none">'
        )
        return "\n".join([head, *pictures, *parts, "</svg>", ""])


def _jpeg_url(color: UInt8[np.ndarray, "h w 3"]) -> str:
    cv2 = require("cv2", extra="images")
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(color[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
