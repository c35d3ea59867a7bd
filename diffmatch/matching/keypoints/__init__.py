"""Keypoints of images, their graphs, and matches between them."""

from diffmatch.matching.keypoints.exports import read_matches as read_matches
from diffmatch.matching.keypoints.exports import write_colmap as write_colmap
from diffmatch.matching.keypoints.exports import write_matches as write_matches
from diffmatch.matching.keypoints.features import detect_sift as detect_sift
from diffmatch.matching.keypoints.features_hessian import detect_hessian as detect_hessian
from diffmatch.matching.keypoints.graph import adaptive_graph as adaptive_graph
from diffmatch.matching.keypoints.graph import keypoint_graph as keypoint_graph
from diffmatch.matching.keypoints.images import Image as Image
from diffmatch.matching.keypoints.images import read_image as read_image
from diffmatch.matching.keypoints.match_images import match_features as match_features
from diffmatch.matching.keypoints.match_images import match_images as match_images
from diffmatch.matching.keypoints.matcher import Matcher as Matcher
from diffmatch.matching.keypoints.matcher import MatcherConfig as MatcherConfig
from diffmatch.matching.keypoints.matcher import match_keypoints as match_keypoints
from diffmatch.matching.keypoints.nearest import match_nearest as match_nearest
from diffmatch.matching.keypoints.record import Keypoints as Keypoints
from diffmatch.matching.keypoints.result import ImageMatches as ImageMatches
from diffmatch.matching.keypoints.scenes import Scenes as Scenes
from diffmatch.matching.keypoints.scenes import SceneSettings as SceneSettings
from diffmatch.matching.keypoints.training import TrainingSettings as TrainingSettings
from diffmatch.matching.keypoints.training import train_matcher as train_matcher
from diffmatch.matching.keypoints.weights import load_matcher as load_matcher
from diffmatch.matching.keypoints.weights import save_matcher as save_matcher

__all__ = [
    "Image",
    "ImageMatches",
    "Keypoints",
    "Matcher",
    "MatcherConfig",
    "SceneSettings",
    "Scenes",
    "TrainingSettings",
    "adaptive_graph",
    "detect_hessian",
    "detect_sift",
    "keypoint_graph",
    "load_matcher",
    "match_features",
    "match_images",
    "match_keypoints",
    "match_nearest",
    "read_image",
    "read_matches",
    "save_matcher",
    "train_matcher",
    "write_colmap",
    "write_matches",
]
