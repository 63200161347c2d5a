import pytest

from ensemw2s.cluster.nodes.gcp import SpotFirstGCP


@pytest.mark.parametrize(
    "spot",
    [{"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}, {"preemptible": True}],
)
def test_an_on_demand_instance_is_the_same_machine(spot):
    node = {"machineType": "g2-standard-8", "scheduling": {**spot, "onHostMaintenance": "TERMINATE"}}
    assert SpotFirstGCP.on_demand(node) == {
        "machineType": "g2-standard-8",
        "scheduling": {"onHostMaintenance": "TERMINATE"},
    }


@pytest.mark.parametrize("node", [{"machineType": "n2"}, {"machineType": "n2", "scheduling": {}}])
def test_a_node_that_is_no_spot_instance_stays_as_it_is(node):
    assert SpotFirstGCP.on_demand(node) == node
