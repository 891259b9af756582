"""The set of optimizers of a run."""

import pytest

from engine.train.network_optimizer import network_optimizer
from engine.train.optimizers import OptimizerSet
from engine.train.update_rules import AdamATan2
from tests.models.small_retnet import make_model

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


@pytest.mark.parametrize(("saved_groups", "kept"), [(2, 0.5), (1, 0.1)])
def test_a_resumed_run_has_its_own_options_unless_the_saved_groups_are_others(saved_groups, kept):
    """Saved with a decay of 0.1, resumed with 0.5."""

    def optimizers(groups, decay):
        module = make_model()
        network = network_optimizer("adam_atan2", module, **(OPTIONS | {"weight_decay": decay}))
        if groups == 1:
            network = AdamATan2(list(module.parameters()), lr=0.1, weight_decay=decay)
        return OptimizerSet(network, 0.1, None, 0.0, schedule=None)

    resumed = optimizers(2, 0.5)
    resumed.load_state_dict(optimizers(saved_groups, 0.1).state_dict())
    groups = resumed.network.param_groups
    assert len(groups) == saved_groups and max(group["weight_decay"] for group in groups) == kept
