"""FedWeIT's clients: gradients, what they send, and whole runs."""

from types import SimpleNamespace

import pytest
import torch
from commands import runner

from runner.methods.federated.fedweit import Client, FedWeIT, Server, capacity
from runner.models.federated import scaled_normal
from runner.models.mlp import perceptron
from runner.schema import OptimizerSettings

IMAGES, LABELS = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1, 0])


def built(**settings):
    """A server with two clients on a perceptron 16-8-6-2."""
    torch.manual_seed(0)
    network = perceptron(2, 1, 4, (8, 6))
    method = FedWeIT(**settings)
    ctx = SimpleNamespace(
        device=torch.device("cpu"),
        durable=SimpleNamespace(seeds=SimpleNamespace(initialisation=0)),
        recipe=SimpleNamespace(optimizer=OptimizerSettings(name="sgd", learning_rate=0.1, momentum=0.0)),
    )
    server = Server(network, "5", method)
    return server, [Client(ctx, method, server, network, number) for number in range(2)]


def play_round(server, clients, *, last=False):
    for client in clients:
        client.receive()
        client.optimizer.zero_grad()
        client.loss(IMAGES, LABELS).backward()
        client.optimizer.step()
        if last:
            client.finish(None)
        client.send(last)
    server.end_round()


def two_tasks(**settings):
    server, clients = built(**settings)
    for client in clients:
        client.begin(0.1)
    play_round(server, clients, last=True)
    return server, clients


def test_the_first_task_has_no_attention_and_adaptive_parts_start_at_a_third_of_the_base():
    _, clients = built()
    clients[0].begin(0.1)
    assert not clients[0].attention
    for name, base in clients[0].base.items():
        assert torch.equal(clients[0].adaptives[0][name], base.detach() / 3)
        assert clients[0].masks[0][name].shape == (len(base),)
    assert not torch.equal(clients[0].masks[0]["1.weight"], clients[1].server.base["1.weight"][:, 0])


def test_knowledge_is_that_of_all_clients_and_frozen():
    server, clients = two_tasks()
    assert server.knowledge["1.weight"].shape == (2, 8, 16)
    assert clients[0].begin(0.1) > 0  # bytes
    clients[0].receive()
    clients[0].loss(IMAGES, LABELS).backward()
    assert clients[0].attention["1.weight"].grad is not None
    assert not server.knowledge["1.weight"].requires_grad
    small = server.knowledge["1.weight"].abs()
    assert not ((small > 0) & (small <= 1e-3)).any()


@pytest.mark.parametrize("retroactive", [False, True])
def test_earlier_tasks_are_trained_only_when_asked(retroactive):
    _, clients = two_tasks(retroactive=retroactive)
    client = clients[0]
    client.begin(0.1)
    client.receive()
    client.loss(IMAGES, LABELS).backward()
    for part in (client.adaptives, client.masks):
        gradient = part[0]["1.weight"].grad
        assert part[0]["1.weight"].requires_grad is retroactive
        assert retroactive == bool(gradient is not None and gradient.abs().sum() > 0)


def test_both_forms_of_the_drift_agree_before_earlier_tasks_move():
    losses = []
    for retroactive in (False, True):
        _, clients = two_tasks(retroactive=retroactive)
        clients[0].begin(0.1)
        clients[0].receive()
        losses.append(clients[0].loss(IMAGES, LABELS).item())
        earlier = sum(item.abs().sum().item() for item in clients[0].adaptives[0].values())
    assert losses[1] - losses[0] == pytest.approx(1e-3 * earlier, rel=1e-3)  # the term without a gradient


def test_a_finished_task_keeps_its_transfer():
    server, clients = two_tasks()
    for client in clients:
        client.begin(0.1)
    play_round(server, clients, last=True)
    before = [item.clone() for item in clients[0].network(1).state_dict().values()]
    server.knowledge = {name: item + 1 for name, item in server.knowledge.items()}
    clients[0].begin(0.1)
    after = clients[0].network(1).state_dict().values()
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_the_state_of_a_client_survives_a_checkpoint():
    server, clients = two_tasks()
    for client in clients:
        client.begin(0.1)
    from runner.checkpoints import decode, encode

    other_server, others = built()
    other_server.load_state_dict(decode(encode(server.state_dict())))
    for client, other in zip(clients, others, strict=True):
        other.load_state_dict(decode(encode(client.state_dict())))
    play_round(server, clients)
    play_round(other_server, others)
    for name in server.base:
        assert torch.equal(server.base[name], other_server.base[name])
        assert torch.equal(clients[1].adaptives[1][name], others[1].adaptives[1][name])


def test_bytes_of_the_way_up():
    server, clients = built(transfer=False)
    clients[0].begin(0.1)
    sent = clients[0].send(False)
    kept = {"1.weight": 8 - 3, "3.weight": 6 - 2}  # floor(0.3 * 8) + 1, floor(0.3 * 6) + 1
    base = (kept["1.weight"] * 16 + kept["3.weight"] * 8) * 4
    assert server.base_bytes == base and sent == base + 1 + 1  # a bit a unit
    assert server.whole_bytes == (8 * 16 + 6 * 8) * 4


def test_without_communication_and_transfer_nothing_travels():
    server, clients = built(transfer=False, communicate=False)
    assert clients[0].begin(0.1) == clients[0].receive() == clients[0].send(True) == 0
    assert not server.bases and not server.adaptives


def test_capacity_counts_what_is_not_zero():
    base, part = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 1e-4]])
    found = capacity([{"a": base}], [[{"a": part}, {"a": part}]], 1e-3)
    assert found == {"capacity": (1 + 2) / 2, "adaptive_density": 0.5}


def test_scaled_normal_has_variance_one_over_n():
    values = scaled_normal(40000, torch.Generator().manual_seed(0))
    assert values.std().item() == pytest.approx(40000**-0.5, rel=0.02)
    assert values.abs().max() <= 2 * 40000**-0.5 / 0.8796


def test_every_ablation_runs(tmp_path):
    options = ("method.transfer=false", "method.adaptive=false", "method.mask=false", "method.retroactive=true")
    for number, option in enumerate(options):
        answer = runner(
            *("method=fedweit", "model=perceptron_100_50", "scale=smoke", "hardware=cpu", option),
            place=tmp_path / str(number),
        )
        assert answer.code == 0, answer.err
        assert (answer.result["metrics"]["uplink_share"] == 1) == (option == "method.mask=false")
        if option == "method.adaptive=false":  # parts that no network has are not counted
            assert answer.result["metrics"]["adaptive_density"] == 0
            assert answer.result["metrics"]["capacity"] <= 1
