"""What the documents say is what the code has: the protocol, the operations, the configuration, the commands."""

import argparse
import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commandline
import msgspec
import pytest
import yaml

from fuse_gated import control, supervision
from fuse_gated.config.policy_file import parse_policy
from fuse_gated.config.settings import Admission, Audit, Proxies, Settings, Tls
from fuse_gated.config.settings_file import parse_settings
from fuse_gated.edge.fuse_requests import OPCODES
from fuse_gated.gate.audit import KINDS
from fuse_gated.gate.judgement import OPERATIONS
from fuse_gated.gate.pattern import compile_pattern, text_of
from fuse_gated.gate.tenant import Exports, Limits, Outage, Tenant, Token
from fuse_gated.gate.verdict import PERMISSIONS, Rule
from fuse_gated.operations import Attributes, Filesystem, Unserved
from fuse_gated.wire import codec, messages
from fuse_gated.wire.messages import Asked, Offer, Replied, Terms
from fuse_gated.wire.tables import ARGUMENTS, RESULTS

TOP = Path(__file__).parents[2]
Tables = Callable[[str], list[list[list[str]]]]
ZEROS = "0" * 64


def fields(kind: type[msgspec.Struct]) -> list[str]:
    return list(kind.__struct_fields__)


def code(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


# Form.


def test_lines_of_prose_are_not_too_long(page: Any) -> None:
    too_long = [line for line in page.prose.splitlines() if len(line) > 132 and not line.startswith("|")]
    assert not too_long


def test_relative_links_lead_somewhere(page: Any) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        if not target.exists() or (anchor and anchor not in type(page)(target).anchors()):
            broken.append(link)
    assert not broken


# The protocol.


def test_the_limits_are_the_codec_s(protocol: Any, tables_of: Tables) -> None:
    rows = {row[0]: row[1] for row in tables_of(protocol.section("## Messages and frames"))[0]}
    assert rows["bytes in a message"] == str(messages.MAX_MESSAGE)
    assert rows["frames in a message"] == str(codec.MAX_FRAMES)
    assert rows["bytes of file data in one `read` or `write`"].endswith(str(messages.MAX_DATA))


def test_the_frames_are_those_there_are(protocol: Any, tables_of: Tables) -> None:
    rows = tables_of(protocol.section("## Frames"))[0]
    kinds = (messages.Hello, messages.Welcome, messages.Ask, messages.Cancel, messages.Reply, messages.Notice, messages.Broken)
    assert [code(row[0])[0] for row in rows] == [kind.__struct_config__.tag for kind in kinds]
    for kind in kinds:
        tag = kind.__struct_config__.tag
        form = f'`["{tag}", {", ".join(fields(kind))}]`'
        assert form in protocol.section(f"### {tag}"), form


@pytest.mark.parametrize(("heading", "kind"), [("### hello", Offer), ("### welcome", Terms)])
def test_the_maps_have_the_keys_there_are(heading: str, kind: type[msgspec.Struct], protocol: Any, tables_of: Tables) -> None:
    assert [code(row[0])[0] for row in tables_of(protocol.section(heading))[0]] == fields(kind)


def test_all_close_codes_are_explained(protocol: Any, tables_of: Tables) -> None:
    (rows,) = tables_of(protocol.section("## The end"))
    ours = {str(value) for name, value in vars(supervision).items() if name.startswith("CLOSE_")}
    assert {row[0] for row in rows} >= ours | {"1000", "1001", "1002", "1003", "1006", "1007", "1008", "1009", "1011"}


def example(protocol: Any) -> list[tuple[str, bytes, Any]]:
    """(who sends it, the message, what the text says it is)."""
    found = []
    for block, following in zip(protocol.blocks, protocol.blocks[1:], strict=False):
        if block.info.startswith("hex "):
            assert following.info == "python"
            found.append((block.info.removeprefix("hex "), bytes.fromhex(block.body), ast.literal_eval(following.body)))
    return found


def test_the_example_is_what_its_text_says(protocol: Any) -> None:
    asked: dict[int, str] = {}
    session = example(protocol)
    assert len(session) > 10
    for sender, message, said in session:
        assert msgspec.msgpack.decode(message) == said
        if sender == "client":
            for reply in codec.decode_from_client(message):
                if isinstance(reply, Replied):
                    operation = asked.pop(reply.id)
                    if reply.errno is None:
                        codec.decode_result(operation, reply.result)
        else:
            for ask in codec.decode_from_server(message):
                if isinstance(ask, Asked):
                    assert codec.decode_arguments(ask) is not None
                    asked[ask.id] = ask.operation
    assert not asked


def test_the_hello_byte_by_byte_is_the_hello(protocol: Any, tables_of: Tables) -> None:
    rows = tables_of(protocol.section("## A session in bytes"))[0]
    assert bytes.fromhex(" ".join(code(row[0])[0] for row in rows)) == example(protocol)[0][1]


# The operations.

SHOWN_RESULTS: dict[Any, str] = {
    None: "nil",
    int: "int",
    bytes: "bytes",
    tuple[bytes, ...]: "[bytes]",
    tuple[messages.Gathered, ...]: "[gathered]",
    Filesystem: "an array of eight ints",
    messages.OpenedFile: "`[handle, attributes, silent, made, leased]`",
    Attributes | None: "nil or attributes",
    messages.Listed: "`[entries, end]`",
    messages.LockState: "`[type, start, end]`",
}


def shown_default(default: object) -> str:
    return "" if default is msgspec.NODEFAULT else "nil" if default is None else str(default).lower()


def test_every_operation_has_its_heading_once(operations: Any) -> None:
    assert re.findall(r"^### (.*)$", operations.section("## The operations"), re.MULTILINE) == list(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_operation_has_its_arguments_and_its_result(name: str, operations: Any, tables_of: Tables) -> None:
    text = operations.section(f"### {name}")
    kind = ARGUMENTS[name]
    rows = next(iter(tables_of(text)), []) if fields(kind) else []
    assert [code(row[0])[0] for row in rows] == fields(kind)
    needed = len(rows) - len(kind.__struct_defaults__)
    for row, default in zip(rows, [msgspec.NODEFAULT] * needed + list(kind.__struct_defaults__), strict=True):
        assert row[1].partition(", ")[2] == shown_default(default), row
    result = re.search(r"^→ (.*)", text, re.MULTILINE)
    assert result is not None
    shown_result = SHOWN_RESULTS.get(RESULTS[name], "attributes")
    assert result[1].replace("[attributes](#attributes)", "attributes").startswith(shown_result)


def test_attributes_and_flags(operations: Any, tables_of: Tables) -> None:
    rows = tables_of(operations.section("### Attributes"))[0]
    assert [(int(row[0]), row[1]) for row in rows] == list(enumerate(fields(Attributes)))
    flags = {f"OPEN_{row[1].upper()}": int(row[0]) for row in tables_of(operations.section("### Open flags"))[0]}
    assert flags == {name: value for name, value in vars(messages).items() if name.startswith("OPEN_")}
    assert ", ".join(fields(Filesystem)) in " ".join(operations.section("### statfs").split())
    assert [row[0] for row in tables_of(operations.section("### readdir"))[1]] == fields(messages.ListedEntry)
    assert [row[0] for row in tables_of(operations.section("### gather"))[1]] == fields(messages.Gathered)


def test_every_opcode_is_in_the_table(operations: Any, tables_of: Tables) -> None:
    (rows,) = tables_of(operations.section("## From FUSE to the wire"))
    known = {number: name for number, (name, _decoder) in OPCODES.items()} | {26: "INIT", 41: "NOTIFY_REPLY"}
    assert [(int(row[0]), row[1]) for row in rows] == sorted(known.items())
    told: set[str] = set()
    for number, _name, asked, answer in rows:
        decoder = OPCODES.get(int(number), ("", None))[1]
        request = decoder(1, memoryview(bytes(256))) if decoder is not None else None
        if isinstance(request, Unserved):
            assert asked == "—"
            assert request.errno in answer
        told.update(name for name in code(asked) if name in ARGUMENTS)
    assert told == set(ARGUMENTS) - {"gather", "unwatch", "unlease"}  # Which the server asks for by itself.


def test_the_gate_s_table_speaks_of_every_operation(operations: Any, tables_of: Tables) -> None:
    (rows,) = tables_of(operations.section("## What the gate asks"))
    told = {name for row in rows for name in row[0].split(", ")}
    by_other_names = {"open-read", "open-write", "open-execute", "chmod", "chown", "truncate", "utimens", "exchange"}
    assert told == set(OPERATIONS) - by_other_names


def test_what_libfuse_lacks_is_listed(operations: Any, tables_of: Tables) -> None:
    from fuse_gated.edge.libfuse import LACKS

    (rows,) = tables_of(operations.section("## What the libfuse driver cannot do"))
    assert dict(rows) == LACKS


# The configuration.


def test_yaml_blocks_are_taken(page: Any) -> None:
    """A policy, settings, or a list of rules."""
    for block in page.blocks:
        if block.info.split(" ")[0] != "yaml":
            continue
        data = yaml.safe_load(block.body)
        if isinstance(data, list):
            rules = "".join(f"      {line}\n" for line in block.body.splitlines())
            assert parse_policy([("rules", f"tenants:\n  a:\n    rules:\n{rules}".encode())])
        elif "tenants" in data:
            assert parse_policy([("policy", block.body.encode())])
        else:
            assert parse_settings(block.body.encode(), "settings")


def test_policies_shown_by_cat_are_taken(page: Any) -> None:
    for block in page.blocks:
        for policy in re.findall(r"^\$ cat \S*policy\.yaml\n(.*?)(?=^\$ |\Z)", block.body, re.MULTILINE | re.DOTALL):
            assert parse_policy([("policy", policy.replace("…", ZEROS).encode())])


def settings_rows(configuration: Any, tables_of: Tables) -> list[list[list[str]]]:
    return tables_of(configuration.section("## fuse-gated.yaml"))


def test_every_setting_is_told_with_its_default(configuration: Any, tables_of: Tables) -> None:
    kinds = (Settings, Tls, Admission, Proxies, Audit)
    for rows, kind in zip(settings_rows(configuration, tables_of), kinds, strict=True):
        assert [code(row[0])[0] for row in rows] == fields(kind)
    top, _tls, admission, _proxies, audit = settings_rows(configuration, tables_of)
    for prefix, rows in (("", top), ("admission", admission), ("audit", audit)):
        for row in rows:
            name, default = code(row[0])[0], code(row[1].rpartition("," if ";" not in row[1] else ";")[2])
            if default and name != "file":
                line = f"{name}: {default[0]}"
                text = f"{prefix}: {{{line}}}" if prefix else line
                assert parse_settings(text.encode(), "settings") == Settings(), text


def test_the_settings_example_has_every_key(configuration: Any) -> None:
    block = next(block for block in configuration.blocks if block.info == "yaml" and "seccomp" in block.body)
    data = yaml.safe_load(block.body)
    assert list(data) == fields(Settings)
    assert [list(data[name]) for name in ("tls", "admission", "proxies", "audit")] == [
        fields(kind) for kind in (Tls, Admission, Proxies, Audit)
    ]


def test_every_key_of_the_policy_is_told(configuration: Any, tables_of: Tables) -> None:
    section = configuration.section("## policy.yaml")
    keys = [[code(row[0])[0] for row in rows] for rows in tables_of(section) if code(rows[0][0])]
    for kind, beside in ((Tenant, {"name", "place"}), (Token, set()), (Exports, set()), (Outage, set()), (Limits, set()),
                         (Rule, {"place"})):  # fmt: skip
        wanted = [name for name in fields(kind) if name not in beside]
        assert wanted in keys, f"{kind.__name__}: {wanted}"
    assert list(PERMISSIONS) in keys
    assert ["denials", "writes", "opens", "everything"] in keys


def test_the_policy_example_has_every_key(configuration: Any) -> None:
    block = next(block for block in configuration.blocks if block.info == "yaml" and "outage" in block.body)
    (tenant,) = yaml.safe_load(block.body)["tenants"].values()
    assert list(tenant) == [name for name in fields(Tenant) if name not in ("name", "place")]
    (read,) = parse_policy([("policy", block.body.encode())])
    assert (read.ownership, read.symlinks, read.audit, read.outage) == ("mapped", "inside", "writes", Outage())
    assert read.exports.max_sessions == Exports().max_sessions


def accepts(pattern: str, path: str) -> bool:
    compiled = compile_pattern(pattern)
    at = compiled.start
    for name in path[1:].encode().split(b"/") if path != "/" else []:
        at = compiled.step(at, name, text_of(name))
    return compiled.accepts(at)


def test_the_patterns_match_as_is_said(configuration: Any, tables_of: Tables) -> None:
    (rows,) = tables_of(configuration.section("### Patterns"))
    for pattern, matched, unmatched in rows:
        (text,) = code(pattern)
        for cell, verdict in ((matched, True), (unmatched, False)):
            paths = [*code(cell), *(["/"] if "the root" in cell else [])]
            assert all(accepts(text, path) is verdict for path in paths), (text, paths)


# Commands.


def parsers() -> dict[str, argparse.ArgumentParser]:
    return {name: commandline.parser(name) for name in commandline.MODULES}


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: sub for action in actions for name, sub in action.choices.items()}


def options(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """The options that may stand in a command with these words: those of the parser and of the subcommands it names."""
    found = set(parser._option_string_actions)
    for name, sub in subparsers(parser).items():
        if name in words:
            found |= options(sub, words)
    return found


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(program, words) of every command of ours that a text shows."""
    for found in re.finditer(
        r"(?<![\w/.-])(fuse-gatectl|fuse-gated|fuse-gate)(?![\w.-])([^\n`|;)'»\"]*)", text.replace("\\\n", " ")
    ):
        yield found[1], found[2].replace("[", " ").replace("]", " ").split()


def test_options_and_subcommands_are_known(page: Any) -> None:
    known = parsers()
    shown = re.findall(r"`([^`\n]+)`", page.prose)
    for text in [*shown, *(block.body for block in page.blocks)]:
        for program, words in commands(text):
            parser = known[program]
            used = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert used <= options(parser, words), f"{program} {' '.join(words)}"
            plain = [word for word in words if not word.startswith("-")]
            if program == "fuse-gatectl" and plain and not any(word.startswith("--") for word in words[:1]):
                assert plain[0].strip(",.:") in subparsers(parser), f"{program} {' '.join(words)}"


def test_the_control_socket_s_answers(authentication: Any, tables_of: Tables) -> None:
    rows = {
        code(row[0])[0]: re.sub(r" \([^)]*\)", "", row[2])
        for row in tables_of(authentication.section("## The control socket"))[0]
    }
    assert rows["status"] == "a map: " + ", ".join(fields(control.Status))
    assert rows["sessions"] == "a list of maps: " + ", ".join(fields(control.Session))


def test_what_is_installed_is_whole() -> None:
    """installation.md has it installed by pip: every package must be named."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))
    found = {".".join(path.parent.relative_to(TOP).parts) for path in (TOP / "fuse_gated").rglob("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == found
    assert set(project["project"]["scripts"]) == set(parsers())


def test_the_catalog_explains_every_kind_of_record() -> None:
    text = (TOP / "systemd" / "fuse-gated.catalog").read_text("utf-8")
    assert set(re.findall(r"^-- ([0-9a-f]{32})$", text, re.MULTILINE)) == {message_id for message_id, _, _ in KINDS.values()}
