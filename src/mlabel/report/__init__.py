"""What a person looks at after a run: figures and one self-contained page."""

from mlabel.report.page import write_diagnosis, write_report
from mlabel.report.plots import (
    plot_correlation,
    plot_examples,
    plot_frequencies,
    plot_history,
    plot_labels_per_image,
)

__all__ = [
    "plot_correlation",
    "plot_examples",
    "plot_frequencies",
    "plot_history",
    "plot_labels_per_image",
    "write_diagnosis",
    "write_report",
]
