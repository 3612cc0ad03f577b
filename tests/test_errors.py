"""errors.py: whose fault it was, what to do next, and errnos by name."""

import errno
import inspect

import pytest

from fuse_gated import errors
from fuse_gated.errors import (
    ConfigurationError,
    GateError,
    KernelError,
    OperatorError,
    PeerError,
    ProtocolError,
    RefusedError,
    UsageError,
    errno_name,
    errno_number,
)

PROMISED = {
    OperatorError: (1, "operator"),
    UsageError: (2, "operator"),
    ConfigurationError: (4, "operator"),
    RefusedError: (3, "peer"),
    PeerError: (1, "peer"),
    ProtocolError: (1, "peer"),
    KernelError: (1, "kernel"),
    GateError: (1, "fuse-gated"),
}


@pytest.mark.parametrize(("kind", "promise"), PROMISED.items())
def test_an_error_says_whose_fault_it_was_and_how_the_command_ends(kind, promise):
    assert (kind.exit_status, kind.fault) == promise
    assert issubclass(kind, GateError)


def test_every_error_is_tried_here():
    assert set(PROMISED) == {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}


def test_an_error_says_what_to_do_next():
    assert str(OperatorError("the port is taken", "choose another")) == "the port is taken (choose another)"
    assert str(OperatorError("the port is taken")) == "the port is taken"


def test_a_faulty_configuration_lists_every_fault():
    error = ConfigurationError("two faults", "see the examples", ("policy.yaml:1", "policy.yaml:2"))
    assert error.faults == ("policy.yaml:1", "policy.yaml:2")
    assert ConfigurationError("none").faults == ()


def test_a_broken_protocol_has_the_code_that_closes_the_connection():
    assert ProtocolError("x").close_code == 1002
    assert ProtocolError("x", 1009).close_code == 1009


def test_errnos_travel_by_name_and_come_back():
    for number in errno.errorcode:
        assert errno_number(errno_name(number)) == number


@pytest.mark.parametrize(
    ("name", "shown"), [("EWOULDBLOCK", "EAGAIN"), ("ENOTSUP", "EOPNOTSUPP"), ("EDEADLOCK", "EDEADLK"), ("ENOENT", "ENOENT")]
)
def test_of_two_names_the_manuals_travels(name, shown):
    assert errno_name(getattr(errno, name)) == shown


def test_what_this_machine_does_not_know_is_an_io_error():
    assert errno_name(0) == errno_name(99999) == "EIO"
    assert errno_number("EFTYPE_OF_ANOTHER_SYSTEM") == errno_number("") == errno_number("errorcode") == errno.EIO
