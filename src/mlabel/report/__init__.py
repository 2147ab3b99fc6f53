"""What a person looks at after a run: figures and one self-contained page."""

from mlabel.report.page import write_report
from mlabel.report.plots import plot_examples, plot_frequencies, plot_history

__all__ = ["plot_examples", "plot_frequencies", "plot_history", "write_report"]
