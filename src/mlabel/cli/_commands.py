"""The commands, without the modules that do them."""

from __future__ import annotations

# In the order of `mlabel --help`, that of their use: command -> its module, and the first line of its help.
COMMANDS = {
    "demo": ("runs", "Train, calibrate and evaluate on scenes of handwritten digits: under a minute, no download."),
    "doctor": ("data", "Say what is wrong or odd with images, labels and parts; exit code 1 where there is an error."),
    "cache": (
        "data",
        "Decode images once, for trainings with `--cache FOLDER`; repeated, it goes on where it was stopped.",
    ),
    "shard": (
        "shard",
        "Pack images and labels into a few large tars, to be read by `--reader shards`; repeated, it goes on.",
    ),
    "models": ("models", "List the backbones with parameters and multiply-adds, without their heads."),
    "train": ("runs", "Train on annotated images, calibrate thresholds, evaluate, and write bundle and report."),
    "tune": (
        "tune",
        "Search over settings, judged on the validation part; repeated, it goes on where it was stopped.",
    ),
    "evaluate": (
        "runs",
        "Measure the best weights of a run, beside the prior, at a threshold and at the calibrated ones.",
    ),
    "report": ("runs", "Write the whole page of a run: figures with intervals, curves, confusions and pictures."),
    "calibrate": (
        "runs",
        "Fit calibration and thresholds of a run on its validation part, and put them into its bundle.",
    ),
    "compare": ("compare", "Compare runs on the same images: metrics with paired intervals, labels won, cost."),
    "label-issues": ("issues", "Name labels that are probably missing or wrong, as CSV and as a page with the images."),
    "predict": ("predict", "Label images with a trained bundle."),
    "export": ("export", "Write a trained model for other programs, and check that it says the same there."),
    "index": ("search", "Index the scores of many images, for `mlabel search`."),
    "search": ("search", "Find images by what they show, or like another."),
    "serve": ("serve", "Serve a page to try a bundle on, and a JSON endpoint, for this machine alone."),
}
