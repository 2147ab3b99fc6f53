"""Quickstart: from a CSV file of annotations to label names, with every piece in the open.

Run it with `python examples/quickstart.py [FOLDER]`. It needs no download: the images are scenes composed from the real
handwritten digits that ship with scikit-learn. Put your own CSV file in their place and change four names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlabel
from mlabel.recipes import write_scenes
from mlabel.training import best_checkpoint, load_weights, score_table

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")

# 1. A table: paths, labels and official parts, checked once. An any-of group "tags" (which digits are there) and an
#    exclusive group "count" (how many) live side by side in one label space.
labels = write_scenes(folder / "scenes", num_scenes=5000)
table = mlabel.data.read_csv(
    labels, tags_column="digits", separator=" ", exclusive=["count"], partition_column="partition"
)
print(table.summary(), "\n")
train, val, test = (table.part(name) for name in ("train", "val", "test"))

# 2. A model and a loss over the same space: asymmetric loss for the digits, cross-entropy for the count.
model = mlabel.create_model("small_cnn", table.space, in_channels=1, image_size=32)
loss = mlabel.losses.create("asymmetric", space=table.space, reduction="batchmean")

# 3. Training. Stop it and run this again: it goes on to the very same weights.
config = mlabel.TrainConfig(epochs=8, batch_size=64, lr=8e-3, warmup_steps=50, monitor="macro_f1")
mlabel.fit(model, loss, train, val, config=config, run_dir=folder, resume="auto")
load_weights(best_checkpoint(folder), model)

# 4. Thresholds, fitted on the validation part and judged on the test part.
val_scores = score_table(model, val).probabilities
test_scores = score_table(model, test).probabilities
thresholds = mlabel.fit_thresholds(val_scores, val.targets, objective="f1", scope="label", space=table.space)
columns = {
    "at 0.5": mlabel.evaluate(test_scores, test.targets, 0.5, space=table.space),
    "calibrated": mlabel.evaluate(test_scores, test.targets, thresholds, space=table.space),
}
print(mlabel.metrics.comparison_table(columns))

# 5. A bundle that labels images anywhere.
mlabel.Tagger(model, thresholds, counts=train.counts).save(folder / "bundle")
for prediction in mlabel.Tagger.load(folder / "bundle").predict(test.paths[:3]):
    print(prediction.path, prediction.labels)
