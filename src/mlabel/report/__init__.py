"""What a person looks at after a run: figures and one self-contained page."""

from mlabel.report.comparison import plot_differences, write_comparison
from mlabel.report.cross_fit import cross_fit_scores
from mlabel.report.curves import PrecisionRecall, plot_precision_recall, plot_reliability, precision_recall
from mlabel.report.endpoint import ServeLimits, create_app
from mlabel.report.issues import LabelIssues, label_issues
from mlabel.report.matrices import plot_confusions, plot_correlation, plot_shares
from mlabel.report.page import write_diagnosis, write_gallery, write_report
from mlabel.report.plots import (
    plot_examples,
    plot_frequencies,
    plot_history,
    plot_labels_per_image,
)
from mlabel.report.saliency import explain
from mlabel.report.search import plot_curves, plot_importances, plot_settings, plot_trials, write_search
from mlabel.report.section import Picture, Section, Tile
from mlabel.report.serving import serve
from mlabel.report.sheet import plot_augmented, plot_explanations, plot_sheet

__all__ = [
    "LabelIssues",
    "Picture",
    "PrecisionRecall",
    "Section",
    "ServeLimits",
    "Tile",
    "create_app",
    "cross_fit_scores",
    "explain",
    "label_issues",
    "plot_augmented",
    "plot_confusions",
    "plot_correlation",
    "plot_curves",
    "plot_differences",
    "plot_examples",
    "plot_explanations",
    "plot_frequencies",
    "plot_history",
    "plot_importances",
    "plot_labels_per_image",
    "plot_precision_recall",
    "plot_reliability",
    "plot_settings",
    "plot_shares",
    "plot_sheet",
    "plot_trials",
    "precision_recall",
    "serve",
    "write_comparison",
    "write_diagnosis",
    "write_gallery",
    "write_report",
    "write_search",
]
