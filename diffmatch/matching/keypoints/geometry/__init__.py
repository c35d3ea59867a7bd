"""Camera geometry from matched points, on tensors: differentiable fits, robust fits, poses."""

from diffmatch.matching.keypoints.geometry.eigenvectors import smallest_eigenvector as smallest_eigenvector
from diffmatch.matching.keypoints.geometry.epipolar import essential_8point as essential_8point
from diffmatch.matching.keypoints.geometry.epipolar import fundamental_8point as fundamental_8point
from diffmatch.matching.keypoints.geometry.epipolar import sampson_distance as sampson_distance
from diffmatch.matching.keypoints.geometry.epipolar import symmetric_epipolar_distance as symmetric_epipolar_distance
from diffmatch.matching.keypoints.geometry.homography import apply_homography as apply_homography
from diffmatch.matching.keypoints.geometry.homography import corner_error as corner_error
from diffmatch.matching.keypoints.geometry.homography import homography_dlt as homography_dlt
from diffmatch.matching.keypoints.geometry.pose import Pose as Pose
from diffmatch.matching.keypoints.geometry.pose import decompose_essential as decompose_essential
from diffmatch.matching.keypoints.geometry.pose import normalize_by_intrinsics as normalize_by_intrinsics
from diffmatch.matching.keypoints.geometry.pose import pose_errors as pose_errors
from diffmatch.matching.keypoints.geometry.pose import pose_from_essential as pose_from_essential
from diffmatch.matching.keypoints.geometry.ransac import RobustFit as RobustFit
from diffmatch.matching.keypoints.geometry.ransac import ransac as ransac

__all__ = [
    "Pose",
    "RobustFit",
    "apply_homography",
    "corner_error",
    "decompose_essential",
    "essential_8point",
    "fundamental_8point",
    "homography_dlt",
    "normalize_by_intrinsics",
    "pose_errors",
    "pose_from_essential",
    "ransac",
    "sampson_distance",
    "smallest_eigenvector",
    "symmetric_epipolar_distance",
]
