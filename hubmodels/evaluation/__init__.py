"""Evaluation of image models: k-nearest neighbours, linear probe, dense probe, and accuracy of classifiers."""

from hubmodels.evaluation.classification import (
    ClassificationReport,
    classification_report,
    evaluate_classifier,
    wilson_interval,
)
from hubmodels.evaluation.dense_probe import DenseProbeResult, box_masks, dense_probe
from hubmodels.evaluation.evaluate import Evaluation, evaluate
from hubmodels.evaluation.features import extract_features, pooled_features
from hubmodels.evaluation.knn import knn_accuracy, knn_predict
from hubmodels.evaluation.label_quality import LabelQuality, LabelQualityEstimator
from hubmodels.evaluation.linear_probe import LinearProbeResult, linear_probe
from hubmodels.evaluation.noisy_label_report import DetectionQuality, NoisyLabelReport, SuspiciousLabel
from hubmodels.evaluation.position_probe import position_probe

__all__ = [
    "ClassificationReport",
    "DenseProbeResult",
    "DetectionQuality",
    "Evaluation",
    "LabelQuality",
    "LabelQualityEstimator",
    "LinearProbeResult",
    "NoisyLabelReport",
    "SuspiciousLabel",
    "box_masks",
    "classification_report",
    "dense_probe",
    "evaluate",
    "evaluate_classifier",
    "extract_features",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "pooled_features",
    "position_probe",
    "wilson_interval",
]
