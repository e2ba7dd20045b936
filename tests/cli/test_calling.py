"""Options that change any config's experiment, beside the settings of its own."""

import launched
import numpy as np
import pytest

from jaxfed.cli import calling, launching, options
from jaxfed.simulation import identity


def called(*arguments):
    """(experiment, settings, launch) of the small config."""
    return calling.call(options.read(launched.SMALL), list(map(str, arguments)), "run")


def data_of(experiment):
    return identity.data_checksum(experiment.data)


@pytest.mark.quick
def test_a_split_seed_deals_the_data_and_the_seed_decides_the_rest():
    made, settings, _ = called("--seed", 1, "--split-seed", 2)
    assert made.seed == 1
    assert data_of(made) == data_of(called("--seed", 2)[0])
    assert (settings["seed"], settings["split_seed"]) == (1, 2)


@pytest.mark.quick
def test_evaluations_can_be_set_for_a_config_that_has_no_such_setting():
    made, settings, _ = called("--evaluate-every", 7)
    assert made.evaluate_every == settings["evaluate_every"] == 7
    with pytest.raises(ValueError, match="evaluate_every=-1"):
        called("--evaluate-every", -1)


@pytest.mark.quick
def test_what_is_not_changed_is_no_setting():
    assert {"split_seed", "evaluate_every", "on"} & set(called()[1]) == set()


@pytest.mark.quick
def test_validation_holds_a_tenth_of_each_clients_rows_out_of_its_training():
    whole, made = called()[0].data, called("--on", "validation")[0].data
    held = whole.train.count // 10
    np.testing.assert_array_equal(made.train.count, whole.train.count - held)
    assert len(made.test["label"]) == held.sum()
    together = np.concatenate([made.train.examples["image"], made.test["image"]])
    assert sorted(x.tobytes() for x in together) == sorted(
        x.tobytes() for x in whole.train.examples["image"]
    )


@pytest.mark.quick
@pytest.mark.parametrize("name", ["", "a/b", "..", "a."])
def test_a_name_that_is_no_folders_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="use letters, digits"):
        launching.Launch(name=name).folder(tmp_path)


@pytest.mark.quick
def test_a_name_places_the_run_under_runs(tmp_path):
    assert str(launching.Launch(name="a=1").folder(tmp_path)) == "runs/a=1"
