"""Models: from images to logits, one column a label.

`create_model` makes a `Classifier` = preprocess, backbone, head. Where to look: `factory` (making models),
`classifier` (the module and its preprocessing), `backbones` and `small_cnn` (networks by name), `heads`,
`pretrained` (weights from files and from torchvision), `config` (the description that is saved).
"""

from mlabel.models.backbones import create_backbone, list_models
from mlabel.models.classifier import Classifier, Preprocess, replace_head
from mlabel.models.config import ModelConfig
from mlabel.models.factory import create_model, from_config
from mlabel.models.heads import HEADS, LinearHead, MLPHead, MultiHead, create_head
from mlabel.models.pretrained import LoadReport, load_weights
from mlabel.models.small_cnn import SmallCNN

__all__ = [
    "HEADS",
    "Classifier",
    "LinearHead",
    "LoadReport",
    "MLPHead",
    "ModelConfig",
    "MultiHead",
    "Preprocess",
    "SmallCNN",
    "create_backbone",
    "create_head",
    "create_model",
    "from_config",
    "list_models",
    "load_weights",
    "replace_head",
]
