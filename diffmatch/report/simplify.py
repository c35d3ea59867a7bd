"""Fewer triangles for display, by merging the vertices of each cell of a grid (vertex clustering)."""

import numpy as np
from jaxtyping import Float64, Int64

__all__ = ["cluster_vertices"]


def cluster_vertices(
    vertices: Float64[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"], *, max_faces: int
) -> tuple[Float64[np.ndarray, "_ 3"], Int64[np.ndarray, "_ 3"], Int64[np.ndarray, " v"]]:
    """Merge vertices that share a grid cell into their mean, and drop the triangles that collapse.

    Meant for pictures of very large meshes: quick and even, but neither manifold nor faithful in detail.

    Args:
        vertices: positions.
        faces: vertex indices.
        max_faces: how many triangles the result may have at most.

    Returns:
        New vertices, new faces, and for each old vertex the new one that took it in. A mesh that is small enough comes
        back unchanged.
    """
    if len(faces) <= max_faces:
        return vertices, faces, np.arange(len(vertices))
    low = vertices.min(axis=0)
    side = max(float((vertices.max(axis=0) - low).max()), 1e-300)
    # A surface crosses about cells^2 cells of a grid, with two triangles each; start high and shrink until it fits.
    cells = int(np.sqrt(max_faces)) + 1
    while True:
        key = np.minimum((vertices - low) / side * cells, cells - 1).astype(np.int64)
        _, owner = np.unique(key @ np.array([1, cells, cells * cells]), return_inverse=True)
        merged = np.sort(owner[faces], axis=1)
        kept = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2])
        if kept.sum() <= max_faces or cells == 1:
            break
        cells = max(1, min(cells - 1, int(cells * 0.98 * np.sqrt(max_faces / kept.sum()))))
    count = np.bincount(owner)
    means = np.stack([np.bincount(owner, weights=vertices[:, axis]) / count for axis in range(3)], axis=1)
    return means, owner[faces][kept], owner
