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

__all__ = [
    "balanced_accuracy",
    "classification_scores",
    "confusion",
    "decision_thresholds",
    "expected_calibration_error",
    "fit_temperature",
    "patient_bootstrap",
    "reliability_curve",
    "wilson_interval",
]
