"""Models: from images to logits, one column a label.

`create_model` makes a `Classifier` = preprocess, backbone, head. Where to look: `factory` (making models),
`classifier` (the module and its preprocessing), `backbones`, `small_cnn`, `report_networks` and `timm_networks`
(networks by name), `feature_maps` (what they know of every place of the image), `base_head`, `heads` and `map_heads`,
`pretrained` and `positions` (weights from files, torchvision and timm), `stages` (what is frozen), `sizes` (parameters
and multiply-adds), `config` (the description that is saved).
"""

from mlabel.models.backbones import create_backbone, list_models
from mlabel.models.base_head import Head
from mlabel.models.classifier import Classifier, Preprocess, replace_head
from mlabel.models.config import VIEWS, ModelConfig
from mlabel.models.factory import create_model, from_config
from mlabel.models.heads import HEADS, EmbeddingHead, LinearHead, MLPHead, MultiHead, create_head
from mlabel.models.map_heads import CSRAHead, MLDecoderHead
from mlabel.models.pretrained import LoadReport, load_weights
from mlabel.models.report_networks import CNN3BatchNorm, CNN4MaxPool, CNN5AvgPool, Prior, SEResNet22
from mlabel.models.sizes import (
    HeadSize,
    ModelSize,
    count_kept_bytes,
    count_multiply_adds,
    measure_backbone,
    measure_heads,
)
from mlabel.models.small_cnn import SmallCNN
from mlabel.models.stages import Stage, freeze, list_stages, unfreeze
from mlabel.models.timm_networks import list_timm_models

__all__ = [
    "HEADS",
    "VIEWS",
    "CNN3BatchNorm",
    "CNN4MaxPool",
    "CNN5AvgPool",
    "CSRAHead",
    "Classifier",
    "EmbeddingHead",
    "Head",
    "HeadSize",
    "LinearHead",
    "LoadReport",
    "MLDecoderHead",
    "MLPHead",
    "ModelConfig",
    "ModelSize",
    "MultiHead",
    "Preprocess",
    "Prior",
    "SEResNet22",
    "SmallCNN",
    "Stage",
    "count_kept_bytes",
    "count_multiply_adds",
    "create_backbone",
    "create_head",
    "create_model",
    "freeze",
    "from_config",
    "list_models",
    "list_stages",
    "list_timm_models",
    "load_weights",
    "measure_backbone",
    "measure_heads",
    "replace_head",
    "unfreeze",
]
