from kxray.metrics.calibration import (
    decision_thresholds,
    expected_calibration_error,
    fit_temperature,
    reliability_curve,
)
from kxray.metrics.classification import (
    balanced_accuracy,
    classification_scores,
    confusion,
    patient_bootstrap,
    wilson_interval,
)
from kxray.metrics.localization import (
    area_above_half,
    iou_at,
    mass_inside,
    pointing_game,
    region_box,
    soft_jaccard,
)
from kxray.metrics.paired import holm, paired_permutation_test

__all__ = [
    "area_above_half",
    "balanced_accuracy",
    "classification_scores",
    "confusion",
    "decision_thresholds",
    "expected_calibration_error",
    "fit_temperature",
    "holm",
    "iou_at",
    "mass_inside",
    "paired_permutation_test",
    "patient_bootstrap",
    "pointing_game",
    "region_box",
    "reliability_curve",
    "soft_jaccard",
    "wilson_interval",
]
