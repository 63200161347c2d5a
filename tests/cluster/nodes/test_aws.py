from ensemw2s.cluster.nodes.aws import SpotFirstAWS


def test_an_on_demand_instance_is_the_same_machine():
    node = {"InstanceType": "g6e.2xlarge", "InstanceMarketOptions": {"MarketType": "spot"}}
    assert SpotFirstAWS.on_demand(node) == {"InstanceType": "g6e.2xlarge"}
    assert SpotFirstAWS.on_demand({"InstanceType": "x"}) == {"InstanceType": "x"}
