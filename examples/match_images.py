"""From two pictures to matches: upright keypoints alone, and with affine views where they are needed.

Run ``python examples/match_images.py [FOLDER]``; half a minute on two cores.
"""

import sys
from pathlib import Path

import torch

from diffmatch.cli.demos.match import painted_texture, slanted_view
from diffmatch.matching.keypoints import adaptive_graph, match_images, write_matches
from diffmatch.matching.keypoints.geometry import corner_error
from diffmatch.report import Report
from diffmatch.report.keypoint_match import add_keypoint_match


def main(folder: str | Path = "out", *, width: int = 640) -> None:
    """Write ``matches.npz`` and ``matches.html`` into a folder.

    Args:
        folder: made if needed.
        width: of the pictures, in pixels.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # Two pictures with a known homography between them; paths of image files do as well.
    picture = painted_texture(0, width=width, height=width * 3 // 4)
    other, truth = slanted_view(picture)

    size = (picture.shape[1], picture.shape[0])
    for name, options in {"upright": {"views": "never", "network": "never"}, "default": {}}.items():
        found = match_images(picture, other, **options)
        error = float("inf")
        if found.homography is not None:
            error = float(corner_error(found.homography, torch.from_numpy(truth), size=size))
        print(f"{name:8} {found.count:5} matches, corner error {error:.2f} px, stages {', '.join(found.stages)}")

    # The graph over the keypoints that GIMS builds, as tensors; `graph.to_geometric()` gives torch-geometric's Data.
    graph = adaptive_graph(found.keypoints_a, generator=torch.Generator().manual_seed(0))
    print(f"graph    {graph.graph.node_count} keypoints, {graph.graph.edge_count // 2} edges")

    write_matches(folder / "matches.npz", found)
    report = Report("Two pictures matched")
    add_keypoint_match(report, found, picture, other)
    report.write(folder / "matches.html")
    print(f"wrote {folder}/matches.npz, matches.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
