"""Constants of a generation: given where a device states none, listed, and never more than a dozen."""

import pytest

from hw import Device, HardwareError
from hw.devices import load
from hw.generations import FOLDER, names


def described(**fields):
    return {
        "name": "g",
        "clock": "1 GHz",
        "generation": "ampere",
        "units": {"tensor": {"kind": "tensor_core", "macs": {"fp16": 64}}, "vector": {"kind": "vector", "lanes": 64, "special_lanes": 16}},
        "memories": {
            "l2": {"kind": "cache", "capacity": "1 MiB", "bandwidth": "1 TB/s"},
            "gddr": {"kind": "dram", "capacity": "1 GiB", "bandwidth": "1 GB/s"},
        },
        **fields,
    }


def test_a_data_sheet_gets_the_constants_of_its_generation():
    device = Device.from_dict(described())
    like = load("a100-80g")
    assert device.launch == like.launch
    assert device.memories["gddr"].efficiency == like.memories["hbm"].efficiency  # whatever the main memory is called
    assert "memories.gddr.efficiency" in device.constants
    assert "fitted on" in device.constants["units.tensor.efficiency"].source


def test_what_a_device_states_itself_wins_and_is_not_listed():
    device = Device.from_dict(described(launch="1 us"))
    assert device.launch == 10**9
    assert "launch" not in device.constants


def test_an_unknown_generation_is_refused_with_the_nearest():
    with pytest.raises(HardwareError, match=r"unknown generation 'amper'.*did you mean `ampere`"):
        Device.from_dict(described(generation="amper"))


@pytest.mark.parametrize("name", names())
def test_a_generation_has_at_most_a_dozen_constants_each_with_its_meaning_and_what_it_was_fitted_on(name):
    import yaml

    constants = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["constants"]
    assert 1 <= len(constants) <= 12
    for constant in constants.values():
        assert constant["meaning"]
        assert "fitted on" in constant["source"]
