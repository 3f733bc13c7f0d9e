"""Networks of NAS-Bench-201: sizes as published, architectures as text, what a cell computes."""

import pytest
import torch

from runner.errors import UserError
from runner.models.cell_network import (
    ARCHITECTURES,
    architecture,
    cell_network,
    read_architecture,
    write_architecture,
)

MIXED = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def test_the_networks_are_those_of_nas_bench_201():
    for operation, expected in (("nor_conv_3x3", 1_531_546), ("none", 73_306)):
        network = cell_network(10, 3, write_architecture([operation] * 6))
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert cell_network(5, 1, MIXED, channels=4)(torch.zeros(2, 1, 9, 9)).shape == (2, 5)


def test_architectures_are_written_and_read():
    assert write_architecture(read_architecture(MIXED)) == MIXED
    assert architecture(0) == write_architecture(["none"] * 6)
    assert architecture(3).endswith("|none~0|none~1|nor_conv_3x3~2|")
    assert architecture(ARCHITECTURES - 1) == write_architecture(["avg_pool_3x3"] * 6)
    for wrong, said in (("|none~0|", "write it as"), (MIXED.replace("none~2", "conv~2"), "no operation 'conv'")):
        with pytest.raises(UserError, match=said):
            read_architecture(wrong)


def test_cells_add_what_their_edges_give():
    network = cell_network(2, 1, "|skip_connect~0|+|skip_connect~0|none~1|+|none~0|skip_connect~1|skip_connect~2|")
    x = torch.rand(1, 16, 4, 4)
    assert torch.equal(network.cells[0](x), 2 * x)
