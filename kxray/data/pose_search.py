"""The search for one film's pose against a pattern: a bank of poses first, then SimpleITK from the best."""

import contextlib
import math

import numpy as np

from kxray.data.similarity import Similarity
from kxray.io.resize import resize

_COARSE = 32
_ROTATIONS = np.arange(-24, 25, 6.0)
_SCALES = np.exp(np.linspace(-0.27, 0.27, 7))
_SHIFTS = range(-4, 5)
# A radian and a unit of log scale move the outline of a chest by about this share of the width.
_RADIUS = 0.3
_APART = np.array([0.15, 0.12, 0.05, 0.05], np.float32)
# The bank's steps are finer than this: whoever walks further from its best copy has lost the chest.
_TRUST = np.array([0.2, 0.2, 0.1, 0.1], np.float32)


class Bank:
    """Turned, scaled and shifted copies of a pattern at 32 pixels, as rows of unit length."""

    def __init__(self, pattern):
        coarse = resize(pattern, (_COARSE, _COARSE))
        reach = max(_SHIFTS)
        wide = _COARSE + 2 * reach
        rows, poses = [], []
        for rotation in _ROTATIONS:
            for scale in _SCALES:
                # Shares of the width of the wide canvas are smaller, so that the scale shrinks with it.
                placed = Similarity(rotation, scale * _COARSE / wide)
                canvas = placed.warp(coarse, (wide, wide), inverse=True)
                for down in _SHIFTS:
                    for right in _SHIFTS:
                        top, left = reach - down, reach - right
                        rows.append(canvas[top : top + _COARSE, left : left + _COARSE].ravel())
                        poses.append(
                            (math.radians(rotation), math.log(scale), right / _COARSE, down / _COARSE)
                        )
        self.poses = np.array(poses, np.float32)
        self.rows = _unit(np.stack(rows))

    def scores(self, contrasts):
        """float32 (N, K): correlation of each film with each copy."""
        coarse = [resize(contrast, (_COARSE, _COARSE)).ravel() for contrast in contrasts]
        return _unit(np.stack(coarse)) @ self.rows.T

    def starts(self, contrast, count=3):
        """Poses of the best copy, and of others that are unlike it and nearly as good."""
        scores = self.scores(contrast[None])[0]
        picked = []
        for k in np.argsort(-scores)[:200]:
            if scores[k] < 0.9 * scores.max():
                break
            distances = np.abs(self.poses[picked] - self.poses[k]) / _APART
            if not picked or (distances.max(axis=1) > 1).all():
                picked.append(k)
            if len(picked) == count:
                break
        return self.poses[picked]


def _unit(rows):
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


@contextlib.contextmanager
def quiet():
    """ITK warns on the terminal, page after page, of every step that leads off the film."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


class Refiner:
    """Registration by SimpleITK from a start: contrast, pose -> pose, score."""

    def __init__(self, pattern):
        self.pattern = pattern
        self.fixed = _image(pattern)
        self.whole = np.ones(pattern.shape, np.float32)

    def __call__(self, contrast, start):
        import SimpleITK as sitk

        transform = sitk.Similarity2DTransform()
        transform.SetParameters((math.exp(start[1]), -float(start[0]), float(start[2]), float(start[3])))
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(24)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=0.015, minStep=1e-3, numberOfIterations=30, relaxationFactor=0.5
        )
        method.SetOptimizerScales((_RADIUS**2, _RADIUS**2, 1.0, 1.0))
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([1.0, 0.0])
        method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(self.fixed, _image(contrast))
            scale, angle, right, down = transform.GetParameters()
        except RuntimeError:
            # ITK's word for a step after which the two no longer overlap.
            return start, self.score(contrast, start)
        pose = np.array([-angle, math.log(max(scale, 1e-3)), right, down], np.float32)
        if (np.abs(pose - start) > _TRUST).any():
            return start, self.score(contrast, start)
        return pose, self.score(contrast, pose)

    def score(self, contrast, pose):
        """Correlation over what the aligned film covers, times the root of the share that it covers."""
        placed = Similarity.from_pose(pose)
        reach = placed.warp(self.whole) > 0.99
        if reach.mean() < 0.3:
            return -1.0
        film, pattern = placed.warp(contrast)[reach], self.pattern[reach]
        film, pattern = film - film.mean(), pattern - pattern.mean()
        scale = math.sqrt(float((film**2).sum()) * float((pattern**2).sum()))
        return float((film * pattern).sum()) / scale * math.sqrt(reach.mean()) if scale else 0.0


def _image(pixels):
    """In the coordinates of `kxray.data.similarity`: shares of the width from the middle."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels, np.float32))
    height, width = pixels.shape
    image.SetSpacing((1 / width, 1 / width))
    image.SetOrigin(((0.5 - width / 2) / width, (0.5 - height / 2) / width))
    return image
