"""What is measured: counts and their ratios, ranking metrics, and the evaluation that has them all::

    decisions, targets, mask --> confusion_counts, sample_counts --> precision, recall, f1, ... (ratios)
    decisions, targets, mask --> cross_confusion: what was decided wrongly where another label holds
    scores, targets, mask    --> average_precision, auroc, break_even, ranking_loss, ... (ranking); ndcg_at_k, ... (top)
    probabilities, targets   --> brier_score, log_loss, expected_calibration_error, reliability
    scores, targets, thresholds --> evaluate --> Evaluation: numbers, per label, per group, tables
    batches of scores, targets  --> ScoreHistogram --> Evaluation, with bounds, from memory that does not grow
    scores, targets --> bootstrap --> Intervals; scores of two models, targets --> compare --> Comparison
    Evaluation --> category_rows, frequency_rows: tables of labels put together

Every function takes NumPy or torch, targets also as SciPy CSR; none changes its input or needs a dense matrix of
targets. Unknown entries count as if they were not there.
"""

from mlabel.metrics._resampled import COUNT_METRICS
from mlabel.metrics.comparison import (
    CORRECTIONS,
    Comparison,
    Difference,
    adjust_p_values,
    compare,
)
from mlabel.metrics.confusion import (
    cross_confusion,
)
from mlabel.metrics.counts import (
    Counts,
    SampleCounts,
    confusion_counts,
    sample_counts,
)
from mlabel.metrics.evaluation import (
    Evaluation,
    comparison_table,
    evaluate,
)
from mlabel.metrics.hierarchical import (
    HierarchicalScores,
    hierarchical_scores,
)
from mlabel.metrics.histogram import (
    ScoreHistogram,
)
from mlabel.metrics.intervals import (
    Interval,
    Intervals,
    bootstrap,
)
from mlabel.metrics.probabilistic import (
    brier_score,
    expected_calibration_error,
    log_loss,
)
from mlabel.metrics.ranking import (
    auroc,
    average_precision,
    break_even,
    coverage_error,
    label_ranking_average_precision,
    log_auc,
    precision_at_recall,
    ranking_loss,
    recall_at_precision,
)
from mlabel.metrics.ratios import (
    balanced_accuracy,
    exact_match,
    example_accuracy,
    f1,
    f_beta,
    g_mean,
    hamming_loss,
    jaccard,
    kappa,
    label_accuracy,
    mcc,
    mean_class_accuracy,
    npv,
    precision,
    ratio,
    recall,
    specificity,
)
from mlabel.metrics.reliability import (
    BINNINGS,
    Reliability,
    reliability,
)
from mlabel.metrics.resamples import (
    draw_resamples,
)
from mlabel.metrics.tables import (
    category_rows,
    frequency_rows,
    rows_table,
)
from mlabel.metrics.top import (
    ndcg_at_k,
    one_error,
    precision_at_k,
    propensities,
    propensity_scored_ndcg_at_k,
    propensity_scored_precision_at_k,
    recall_at_k,
)

__all__ = [
    "BINNINGS",
    "CORRECTIONS",
    "COUNT_METRICS",
    "Comparison",
    "Counts",
    "Difference",
    "Evaluation",
    "HierarchicalScores",
    "Interval",
    "Intervals",
    "Reliability",
    "SampleCounts",
    "ScoreHistogram",
    "adjust_p_values",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "bootstrap",
    "break_even",
    "brier_score",
    "category_rows",
    "compare",
    "comparison_table",
    "confusion_counts",
    "coverage_error",
    "cross_confusion",
    "draw_resamples",
    "evaluate",
    "exact_match",
    "example_accuracy",
    "expected_calibration_error",
    "f1",
    "f_beta",
    "frequency_rows",
    "g_mean",
    "hamming_loss",
    "hierarchical_scores",
    "jaccard",
    "kappa",
    "label_accuracy",
    "label_ranking_average_precision",
    "log_auc",
    "log_loss",
    "mcc",
    "mean_class_accuracy",
    "ndcg_at_k",
    "npv",
    "one_error",
    "precision",
    "precision_at_k",
    "precision_at_recall",
    "propensities",
    "propensity_scored_ndcg_at_k",
    "propensity_scored_precision_at_k",
    "ranking_loss",
    "ratio",
    "recall",
    "recall_at_k",
    "recall_at_precision",
    "reliability",
    "rows_table",
    "sample_counts",
    "specificity",
]
