"""A client was given a node's address; the node was started again under another one. The client went on asking at the old one,
because that had always led to the node of this name, until somebody gave it the new address."""

from __future__ import annotations

from rcache_client.address import Address
from rcache_client.door import Door
from rcache_client.handshake import Greeter
from rcache_client.servers import Doors
from rcache_client.view import Node
from rcache_client.wire.opcodes import Role

OLD, NEW = Address("127.0.0.1", 1), Address("127.0.0.1", 2)


def make_door(address: Address, *, is_seed: bool = False) -> Door:
    return Door(address, Greeter("client", Role.CLIENT, None), 2, 1.0, is_seed=is_seed)


def followed(doors: Doors, address: Address) -> Door:
    found = doors.follow({"n1": Node("n1", 1, str(address), "up")}, {"n1"})
    assert found is not None
    return found["n1"]


def test_a_node_with_another_address_is_gone_from_the_seed_that_led_to_it() -> None:
    seed = make_door(OLD, is_seed=True)
    doors = Doors([seed], wait_for_servers=False, make_door=make_door)
    seed.leads_to = "n1"
    assert followed(doors, OLD) is seed
    assert followed(doors, NEW).address == NEW
    assert followed(doors, OLD) is seed, "and back"


def test_a_seed_that_leads_to_a_node_under_another_name_of_the_machine_is_its_door() -> None:
    """What a node says of itself need not be how a client reaches it."""
    seed = make_door(OLD, is_seed=True)
    doors = Doors([seed], wait_for_servers=False, make_door=make_door)
    seed.leads_to = "n1"
    assert followed(doors, NEW) is seed
    assert followed(doors, NEW) is seed
