import msgspec
import pytest

from fuse_gated.config.settings import Admission, Audit, Proxies, Settings, Tls
from fuse_gated.config.settings_file import listen_address, parse_settings
from fuse_gated.errors import ConfigurationError

EVERYTHING = b"""
user: gatekeeper
listen: '[::1]:7433'
tls:
  certificate: /etc/ssl/server.pem
  key: /etc/ssl/server.key
  client_ca: /etc/ssl/clients.pem
admission: {startups: 10, per_address: 2, login_deadline: 5s}
proxies: {addresses: [unix, "::1", 10.0.0.0/8], header: proxy-protocol}
audit: {to: file, file: /var/log/audit.jsonl}
drivers: [libfuse]
without: [resend]
request_deadline: 1m
slow_operation: 250ms
max_in_flight: 64
max_bytes_in_flight: 16MiB
max_sessions: 5
inodes: 5000
origins: [https://app.example.org, 'http://localhost:8080']
seccomp: false
"""


def faults_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        parse_settings(text.encode(), "fuse-gated.yaml")
    return raised.value.faults


def test_every_key_has_a_default() -> None:
    assert parse_settings(b"", "fuse-gated.yaml") == Settings()
    assert parse_settings(b"{}", "fuse-gated.yaml") == Settings()


def test_every_key_can_be_set() -> None:
    settings = parse_settings(EVERYTHING, "fuse-gated.yaml")
    assert settings == Settings(
        user="gatekeeper",
        listen="[::1]:7433",
        tls=Tls(certificate="/etc/ssl/server.pem", key="/etc/ssl/server.key", client_ca="/etc/ssl/clients.pem"),
        admission=Admission(startups=10, per_address=2, login_deadline=5.0),
        proxies=Proxies(addresses=("unix", "::1", "10.0.0.0/8"), header="proxy-protocol"),
        audit=Audit(to="file", file="/var/log/audit.jsonl"),
        drivers=("libfuse",),
        without=("resend",),
        request_deadline=60.0,
        slow_operation=0.25,
        max_in_flight=64,
        max_bytes_in_flight=16 * 2**20,
        max_sessions=5,
        inodes=5000,
        origins=("https://app.example.org", "http://localhost:8080"),
        seccomp=False,
    )
    defaults = msgspec.structs.asdict(Settings())
    unset = [name for name, value in msgspec.structs.asdict(settings).items() if value == defaults[name]]
    assert unset == []  # a field that is added to Settings needs its key here


def test_all_faults_are_told_at_once() -> None:
    text = """\
usr: me
listen: 127.0.0.1
tls: {certificate: server.pem}
admission:
  startups: 0
  startups: 5
audit: {to: syslog}
drivers: [kernal]
request_deadline: never
max_bytes_in_flight: 10k
inodes: 10
origins: [app.example.org, 'https://app.example.org/path']
seccomp: maybe
"""
    assert faults_of(text) == (
        "fuse-gated.yaml:1:1: unknown key 'usr' in the settings (did you mean 'user'?)",
        "fuse-gated.yaml:2:9: '127.0.0.1' is not an address to listen at: '127.0.0.1' is not a port "
        "(HOST:PORT, such as 127.0.0.1:7433 or '[::1]:7433')",
        "fuse-gated.yaml:3:6: tls lacks 'key'",
        "fuse-gated.yaml:3:20: 'server.pem' is not an absolute path (begin it with /)",
        "fuse-gated.yaml:5:13: 0 is not within 1 and 100000",
        "fuse-gated.yaml:6:3: 'startups' is given a second time in admission (the first is at fuse-gated.yaml:5)",
        "fuse-gated.yaml:7:13: 'syslog' is not one of auto, journal, file",
        "fuse-gated.yaml:8:11: 'kernal' is not one of kernel, libfuse, network (did you mean 'kernel'?)",
        "fuse-gated.yaml:9:19: 'never' is not a duration (such as 500ms, 10s, 2m or 1h; a plain number is seconds)",
        "fuse-gated.yaml:10:22: '10k' is not a size (such as 1024, 512KiB, 50MiB or 4GiB; also kB, MB, GB, TiB and B)",
        "fuse-gated.yaml:11:9: 10 is not within 1000 and 2147483648",
        "fuse-gated.yaml:12:11: 'app.example.org' is not an origin (such as https://app.example.org, without a path)",
        "fuse-gated.yaml:12:28: 'https://app.example.org/path' is not an origin "
        "(such as https://app.example.org, without a path)",
        "fuse-gated.yaml:13:10: expected true or false, found the text 'maybe'",
    )


def test_the_error_says_how_many_there_are() -> None:
    with pytest.raises(ConfigurationError, match="the configuration has 2 faults") as raised:
        parse_settings(b"a: 1\nb: 2\n", "fuse-gated.yaml")
    assert raised.value.exit_status == 4
    with pytest.raises(ConfigurationError, match="the configuration has one fault"):
        parse_settings(b"a: 1\n", "fuse-gated.yaml")


def test_what_is_not_a_mapping_is_told() -> None:
    assert faults_of("[a]") == ("fuse-gated.yaml:1:1: expected a mapping for the settings, found a list",)
    assert faults_of("a: [") == (
        "fuse-gated.yaml:1:5: not YAML: expected the node content, but found '<stream end>' "
        "(look at the indentation, and put a value that begins with a bracket in quotes)",
    )


def test_addresses_that_yaml_takes_for_something_else() -> None:
    assert faults_of("listen: [host, 7433]") == ("fuse-gated.yaml:1:9: expected HOST:PORT, found a list",)
    assert faults_of("listen: [fe80::1]:7433") == (
        "fuse-gated.yaml:1:18: not YAML: expected <block end>, but found '<scalar>' "
        "(look at the indentation, and put a value that begins with a bracket in quotes)",
    )


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7433", "127.0.0.1", 7433),
        ("[::1]:7433", "::1", 7433),
        ("[fe80::1%eth0]:0", "fe80::1%eth0", 0),
        ("server.example.org:65535", "server.example.org", 65535),
        ("0.0.0.0:1", "0.0.0.0", 1),
    ],
)
def test_addresses_to_listen_at(text: str, host: str, port: int) -> None:
    assert listen_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "7433", ":7433", "host:", "host:x", "host:65536", "host:-1", "host:07", "::1:7433", "[::1]", "[x]:1", "a b:1", "[]:1"],
)
def test_what_is_no_address_to_listen_at(text: str) -> None:
    with pytest.raises(ValueError):
        listen_address(text)


def test_proxies() -> None:
    assert faults_of("""\
proxies:
  addresses: [localhost, 10.0.0.1/8, 0.0.0.0/0]
  header: forwarded
""") == (
        "fuse-gated.yaml:2:15: 'localhost' is no proxy's address: 'localhost' does not appear to be an IPv4 or IPv6 network "
        "(such as 127.0.0.1, '::1', 10.0.0.0/24, or unix)",
        "fuse-gated.yaml:2:26: '10.0.0.1/8' is no proxy's address: 10.0.0.1/8 has host bits set "
        "(such as 127.0.0.1, '::1', 10.0.0.0/24, or unix)",
        "fuse-gated.yaml:2:38: '0.0.0.0/0' is everybody, who could then claim any address (name the proxies)",
        "fuse-gated.yaml:3:11: 'forwarded' is not one of proxy-protocol, x-forwarded-for "
        "(did you mean 'x-forwarded-for'?)",
    )
    assert faults_of("proxies: {addresses: []}") == (
        "fuse-gated.yaml:1:10: proxies lacks 'header'",
        "fuse-gated.yaml:1:22: the list of addresses is empty",
    )
