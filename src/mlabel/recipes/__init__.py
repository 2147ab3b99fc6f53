"""Presets and the whole way of a run: read, split, fit, calibrate, evaluate, bundle, report."""

from mlabel.recipes.card import copy_with_card
from mlabel.recipes.comparing import LABEL_STATISTICS, compare_runs
from mlabel.recipes.comparison import RunComparison
from mlabel.recipes.cost import ModelCost, measure_costs
from mlabel.recipes.demo import DEMO, demo
from mlabel.recipes.evaluation import RunEvaluation
from mlabel.recipes.imbalance import make_loss
from mlabel.recipes.label_issues import RunIssues, find_run_issues, write_issues
from mlabel.recipes.pages.comparison_page import write_run_comparison
from mlabel.recipes.pages.run_page import report_run, write_evaluation
from mlabel.recipes.pages.study_page import write_study
from mlabel.recipes.plan import RunPlan, plan_run
from mlabel.recipes.recipe import CALIBRATIONS, INIT_BIASES, Recipe
from mlabel.recipes.reports import REPORTS, Report
from mlabel.recipes.run import Run, run
from mlabel.recipes.scenes import write_scenes
from mlabel.recipes.stand_ins import STAND_INS, write_stand_in
from mlabel.recipes.tuning import KEEP_TRIALS, best_recipe, retrain, tune

__all__ = [
    "CALIBRATIONS",
    "DEMO",
    "INIT_BIASES",
    "KEEP_TRIALS",
    "LABEL_STATISTICS",
    "REPORTS",
    "STAND_INS",
    "ModelCost",
    "Recipe",
    "Report",
    "Run",
    "RunComparison",
    "RunEvaluation",
    "RunIssues",
    "RunPlan",
    "best_recipe",
    "compare_runs",
    "copy_with_card",
    "demo",
    "find_run_issues",
    "make_loss",
    "measure_costs",
    "plan_run",
    "report_run",
    "retrain",
    "run",
    "tune",
    "write_evaluation",
    "write_issues",
    "write_run_comparison",
    "write_scenes",
    "write_stand_in",
    "write_study",
]
