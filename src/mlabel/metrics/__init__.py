"""What is measured: counts and their ratios, ranking metrics, and the evaluation that has them all.

    decisions, targets, mask --> confusion_counts, sample_counts --> precision, recall, f1, ... (ratios)
    scores, targets, mask    --> average_precision, auroc, label_ranking_average_precision, ...
    scores, targets, thresholds --> evaluate --> Evaluation: numbers, per label, per group, tables
    batches of scores, targets  --> ScoreHistogram --> Evaluation, with bounds, from memory that does not grow

Every function takes NumPy or torch, targets also as SciPy CSR; none changes its input or needs a dense matrix of
targets. Unknown entries count as if they were not there.
"""

from mlabel.metrics.counts import Counts, SampleCounts, confusion_counts, sample_counts
from mlabel.metrics.evaluation import Evaluation, comparison_table, evaluate
from mlabel.metrics.histogram import ScoreHistogram
from mlabel.metrics.ranking import (
    auroc,
    average_precision,
    coverage_error,
    label_ranking_average_precision,
    ranking_loss,
)
from mlabel.metrics.ratios import (
    exact_match,
    f1,
    f_beta,
    hamming_loss,
    jaccard,
    label_accuracy,
    mean_class_accuracy,
    precision,
    ratio,
    recall,
    specificity,
)

__all__ = [
    "Counts",
    "Evaluation",
    "SampleCounts",
    "ScoreHistogram",
    "auroc",
    "average_precision",
    "comparison_table",
    "confusion_counts",
    "coverage_error",
    "evaluate",
    "exact_match",
    "f1",
    "f_beta",
    "hamming_loss",
    "jaccard",
    "label_accuracy",
    "label_ranking_average_precision",
    "mean_class_accuracy",
    "precision",
    "ranking_loss",
    "ratio",
    "recall",
    "sample_counts",
    "specificity",
]
