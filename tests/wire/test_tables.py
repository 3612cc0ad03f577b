"""wire/tables.py: every operation has arguments and a result."""

from fuse_gated.wire.messages import Arguments
from fuse_gated.wire.tables import ARGUMENTS, OPERATION_OF, RESULTS


def test_every_operation_has_arguments_and_a_result():
    assert ARGUMENTS.keys() == RESULTS.keys()


def test_every_structure_of_arguments_is_one_operations():
    assert set(OPERATION_OF) == set(Arguments.__subclasses__())
    assert {name: ARGUMENTS[name] for name in OPERATION_OF.values()} == ARGUMENTS
