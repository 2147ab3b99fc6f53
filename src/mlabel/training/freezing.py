"""Which stages of the backbone train, as a function of the epoch."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlabel.models import Classifier
from mlabel.models.stages import list_stages, stages_until
from mlabel.training.config import TrainConfig


class Freezing:
    """What `config` freezes of `model`.

    Nothing here is state: what trains follows from the epoch alone, so that a resumed training needs nothing to know
    it. Parameters that wanted no gradient at the beginning never want one.

    Args:
        model: The model in training.
        config: `freeze`, `unfreeze_epoch`, `unfreeze` and `batch_norm` are used.

    Raises:
        ValueError: the backbone has no stage of the name that `config.freeze` gives.
    """

    def __init__(self, model: Classifier, config: TrainConfig) -> None:
        until = 0 if config.freeze is None else stages_until(model, config.freeze)
        stages = list_stages(model)[:until]
        wanting = {name: each for name, each in model.backbone.named_parameters() if each.requires_grad}
        self._model = model
        self._config = config
        self._parameters = [[each for name, each in wanting.items() if stage.holds(name)] for stage in stages]
        self._modules = [[model.backbone.get_submodule(name) for name in stage.modules] for stage in stages]
        self._norms: list[nn.Module] = []
        if config.batch_norm == "frozen":
            self._norms = [module for module in model.backbone.modules() if isinstance(module, _BatchNorm)]

    def num_frozen(self, epoch: int) -> int:
        """Return how many stages, counted from the image, are frozen after `epoch` finished epochs."""
        begin = self._config.unfreeze_epoch
        if begin is None or epoch < begin:
            return len(self._parameters)
        return max(0, len(self._parameters) - (epoch - begin + 1)) if self._config.unfreeze == "gradual" else 0

    def apply(self, epoch: int) -> None:
        """Let what is to train in this epoch want gradients, and nothing else; put what is frozen in evaluation mode.

        Called before every step, since scoring in between leaves the whole model in training mode.
        """
        frozen = self.num_frozen(epoch)
        for number, parameters in enumerate(self._parameters):
            for parameter in parameters:
                parameter.requires_grad_(number >= frozen)
        for module in (each for modules in self._modules[:frozen] for each in modules):
            module.eval()
        for norm in self._norms:
            norm.eval()

    def end(self) -> None:
        """Let the parameters want gradients, and the layers be in the mode, as if nothing had been frozen."""
        for parameter in (each for parameters in self._parameters for each in parameters):
            parameter.requires_grad_(True)
        if self._modules or self._norms:
            self._model.train(self._model.training)
