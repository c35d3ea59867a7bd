"""The search for matches of two images: stage after stage, until enough matches verify."""

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.keypoints.attempt import Attempt, attempt, keep_close, keep_verified, rematch
from diffmatch.matching.keypoints.chance import confirmed
from diffmatch.matching.keypoints.descriptor_search import Nearest, extend_nearest, nearest_descriptors
from diffmatch.matching.keypoints.features import ROOTSIFT
from diffmatch.matching.keypoints.images import Image
from diffmatch.matching.keypoints.nearest import match_nearest, one_to_one
from diffmatch.matching.keypoints.predicted import rematch_predicted
from diffmatch.matching.keypoints.record import Keypoints
from diffmatch.matching.keypoints.views import View, join_keypoints, view_keypoints, views_of_tilt

__all__ = ["Clock", "MoreViews", "Search", "SearchSettings", "more_views"]

TILTS = (2.88, 6.2)
"""Views are added one tilt after the other: a near-optimal cover of what a camera can see (Rodríguez et al. 2018)."""

_VIEW_KEYPOINTS = 1500  # of each affine view
_PREDICTED_KEYPOINTS = 4096  # of each view that a homography predicts
_PLENTY = 2  # times enough, after the network
_NEAREST = 8  # descriptors looked through along an epipolar line

MoreViews = Sequence[tuple[str, Callable[[], list[Keypoints]]]]


@dataclass(frozen=True)
class SearchSettings:
    """What :func:`~diffmatch.matching.keypoints.match_images` was asked for; see there."""

    ratio: float
    threshold: float
    estimator: str
    seed: int
    enough: int
    network: str
    guided: bool
    device: torch.device


class Clock:
    """Seconds spent on each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last call for a part."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


class Search:
    """The stages, in order, until enough matches verify."""

    def __init__(self, settings: SearchSettings, clock: Clock, *, always_more: bool) -> None:
        self.settings, self.clock, self.always_more = settings, clock, always_more
        self.stages: list[str] = []

    def run(
        self,
        a: Keypoints,
        b: Keypoints,
        more: MoreViews,
        images: Sequence[Image] = (),
    ) -> tuple[Attempt, Attempt]:
        """The final matches, all verified, and the raw matches they come from."""
        best, nearest = self.find(a, b, more)
        return self.finish(best, nearest, images), best

    def find(self, a: Keypoints, b: Keypoints, more: MoreViews) -> tuple[Attempt, Nearest | None]:
        """The best attempt of all stages, and the nearest descriptors of its keypoints."""
        s = self.settings
        if s.network == "always" and not _network_knows(a):
            raise InputError("network", f"'auto' or 'never' with descriptors of kind {a.kind!r}", "'always'")
        best, known = self._nearest(a, b, "upright")
        nearest = known
        if _network_knows(a) and (s.network == "always" or (s.network == "auto" and best.verified < s.enough)):
            found = self._network(a, b)
            best = found if s.network == "always" else max(best, found, key=_verified)
        # What the network adds lies on frames that do not quite correspond: views place their matches better, and are
        # left out only where it has found plenty.
        wanted = s.enough if len(self.stages) == 1 else _PLENTY * s.enough
        for name, views in more:
            if best.verified >= wanted and not self.always_more:
                break
            wanted = s.enough
            extra = views()
            self.clock.lap("detect")
            a, b = join_keypoints([a, extra[0]]), join_keypoints([b, extra[1]])
            wider, known = self._nearest(a, b, name, known)
            if wider.verified > best.verified:
                best, nearest = wider, known
        if best.verified < s.enough:
            best = confirmed(best, nearest=nearest, threshold=s.threshold)
            self.clock.lap("verify")
        return best, nearest

    def finish(self, best: Attempt, nearest: Nearest | None, images: Sequence[Image]) -> Attempt:
        """The verified matches of an attempt, and those that are found again under its geometry."""
        s = self.settings
        final = keep_verified(best)
        if best.geometry.found and s.guided:
            final = rematch(best, nearest=nearest, threshold=s.threshold, estimator=s.estimator, seed=s.seed)
            self.clock.lap("guided")
            if images and len(self.stages) > 1 and final.geometry.planar:
                final = self._predicted(final, images)
        return keep_close(final, s.threshold)

    def _predicted(self, found: Attempt, images: Sequence[Image]) -> Attempt:
        s = self.settings
        self.stages.append("predicted")
        final = rematch_predicted(
            found,
            *(image.gray for image in images),
            max_keypoints=_PREDICTED_KEYPOINTS,
            threshold=s.threshold,
            estimator=s.estimator,
            seed=s.seed,
        )
        self.clock.lap("predicted")
        return final

    def _nearest(
        self, a: Keypoints, b: Keypoints, name: str, known: Nearest | None = None
    ) -> tuple[Attempt, Nearest | None]:
        self.stages.append(name)
        if known is not None:
            # Two views of the largest tilt seldom look alike, and are many.
            nearest: Nearest | None = extend_nearest(known, a, b, among_new=name != f"tilt {TILTS[-1]:g}")
        else:
            nearest = nearest_descriptors(a, b, k=_NEAREST) if a.count and b.count else None
        pairs, scores = match_nearest(a, b, ratio=self.settings.ratio, nearest=nearest)
        self.clock.lap("match")
        tried = self._attempt(a, b, pairs, scores)
        return tried, nearest

    def _network(self, a: Keypoints, b: Keypoints) -> Attempt:
        from diffmatch.matching.keypoints.matcher import match_keypoints

        self.stages.append("network")
        with torch.inference_mode():
            pairs, scores = match_keypoints(a.to(self.settings.device), b.to(self.settings.device))
            pairs, scores = pairs.cpu(), scores.cpu()
            kept = one_to_one(a.positions[pairs[:, 0]], b.positions[pairs[:, 1]], scores)
        self.clock.lap("network")
        return self._attempt(a, b, pairs[kept], scores[kept])

    def _attempt(self, a: Keypoints, b: Keypoints, pairs: Tensor, scores: Tensor) -> Attempt:
        s = self.settings
        found = attempt(a, b, pairs, scores, threshold=s.threshold, estimator=s.estimator, seed=s.seed)
        self.clock.lap("verify")
        return found


def _verified(found: Attempt) -> int:
    return found.verified


def _network_knows(keypoints: Keypoints) -> bool:
    """Whether the matcher that ships with the package is made for these descriptors."""
    return keypoints.kind == ROOTSIFT


def more_views(images: Sequence[Image]) -> MoreViews:
    """For each tilt its name and a function that makes the keypoints of its views of both images."""

    def of_view(image: Image, view: View) -> Keypoints:
        return view_keypoints(image.gray, view, max_keypoints=_VIEW_KEYPOINTS)

    def of_tilt(tilt: float) -> list[Keypoints]:
        views = views_of_tilt(tilt)
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            return [join_keypoints(list(pool.map(functools.partial(of_view, image), views))) for image in images]

    return [(f"tilt {tilt:g}", functools.partial(of_tilt, tilt)) for tilt in TILTS]
