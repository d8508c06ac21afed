# SPDX-License-Identifier: Apache-2.0
"""The filter's terms, compared with a slow and obvious model that evaluates one row's dict at a time."""

from __future__ import annotations

import ipaddress
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import FilterError, UsageError
from nettop.query.filter import combined, parse_filter, quote
from nettop.snapshots import lenses
from nettop.snapshots.bandwidth import INTERFACES
from nettop.snapshots.connections import FAILURES, GROUPS, SOCKETS
from nettop.snapshots.cpu import CPUS, PROCESSES
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.schema import Field, Kind, Table
from tests.unit.build import Row, example_rows, make_frame, make_view
from tests.unit.strategies import BIG, CONTAINERS, NUMBERS, V4, V6, rows
from tests.unit.strategies import PROCESSES as PROCESS_NAMES

Model = Callable[[Row], bool]
Term = tuple[str, Model]

ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
TEXT_OPS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda text, word: text.lower() == word.lower(),
    "!=": lambda text, word: text.lower() != word.lower(),
    "~": lambda text, word: word.lower() in text.lower(),
    "!~": lambda text, word: word.lower() not in text.lower(),
}
spaces = st.sampled_from(["", " ", "  "])


def passed(each: list[Row], text: str, **query: Any) -> list[int]:
    """Return the keys of the rows that the filter passes."""
    view = make_view(make_frame(each), text, all_rows=True, **query)
    mask = view.query.filter.mask(view)
    assert mask.dtype == bool
    assert mask.shape == (view.size,)
    return view.raw("id")[mask].tolist()


def expected(each: list[Row], model: Model) -> list[int]:
    """Return the keys of the rows that the model passes."""
    return [at for at, row in enumerate(each, 1) if model(row)]


# --- the model ----------------------------------------------------------------------------------------------


def ordered(field: str, op: str, number: float) -> Model:
    """Return a comparison of numbers; unknown compares with nothing."""
    return lambda row: row[field] is not None and ORDERS[op](row[field], number)


def textual(field: str, op: str, word: str) -> Model:
    """Return a comparison of texts without regard to case; unknown compares with nothing."""
    return lambda row: row[field] is not None and TEXT_OPS[op](row[field], word)


def shown(address: str, port: int | None) -> str:
    """Return an endpoint as people write it."""
    return f"{f'[{address}]' if ':' in address else address}:{'*' if port is None else port}"


def within(field: str, network: str) -> Model:
    """Return the address lies in the network; IPv4 never lies in an IPv6 one unless that holds mapped addresses."""
    net = ipaddress.ip_network(network, strict=False)

    def test(row: Row) -> bool:
        address = ipaddress.ip_address(row[field])
        if net.version == 6 and address.version == 4:
            address = ipaddress.ip_address("::ffff:" + row[field])
        return address in net

    return test


def anywhere(word: str) -> Model:
    """Return a word is part of a text that is shown, or the number of a label."""

    def test(row: Row) -> bool:
        texts = [row[name] for name in ("process", "container", "state", "local_address", "remote_address")]
        texts += ["tcp", "IPv4"]  # what the builder gives every row
        labels = [row[name] for name in ("pid", "uid", "local_port", "remote_port")]
        number = int(word) if word.isdigit() else -1
        return any(text and word.lower() in text.lower() for text in texts) or number in labels

    return test


@st.composite
def label_terms(draw: st.DrawFn) -> Term:
    """Draw `pid >= 443`."""
    field = draw(st.sampled_from(["pid", "uid", "local_port", "remote_port"]))
    op, number = draw(st.sampled_from([*ORDERS])), draw(st.sampled_from(NUMBERS))
    return f"{field}{draw(spaces)}{op}{draw(spaces)}{number}", ordered(field, op, number)


@st.composite
def amount_terms(draw: st.DrawFn) -> Term:
    """Draw `rtt_us > 10 ms`."""
    texts = {"10ms": 10_000, "10 ms": 10_000, "9999": 9_999, "3s": 3_000_000, "0": 0, "10001us": 10_001}
    op, text = draw(st.sampled_from([*ORDERS])), draw(st.sampled_from([*texts]))
    field = draw(st.sampled_from(["rtt_us", "rtt_var_us", "rtt"]))
    return f"{field}{draw(spaces)}{op}{draw(spaces)}{text}", ordered(
        field + "_us" * (field == "rtt"), op, texts[text]
    )


@st.composite
def whole_terms(draw: st.DrawFn) -> Term:
    """Draw `bytes_sent = 9007199254740993`: exact beyond a float's precision."""
    op, number = draw(st.sampled_from([*ORDERS])), draw(st.sampled_from([*BIG, 10**20 - 1]))
    return f"bytes_sent{op}{number}", ordered("bytes_sent", op, number)


@st.composite
def ratio_terms(draw: st.DrawFn) -> Term:
    """Draw `retransmit_ratio > 1%`."""
    texts = {"1%": 0.01, "0.01": 0.01, "0": 0.0, "2%": 0.02, "500%": 5.0}
    op, text = draw(st.sampled_from(["=", "!=", ">", ">=", "<", "<="])), draw(st.sampled_from([*texts]))

    def model(row: Row) -> bool:
        over, under = row["retransmits"], row["data_packets_sent"]
        return over is not None and bool(under) and ORDERS[op](over / under, texts[text])

    return f"retransmit_ratio{op}{text}", model


@st.composite
def text_terms(draw: st.DrawFn) -> Term:
    """Draw `process = nginx`, quoted if necessary."""
    field = draw(st.sampled_from(["process", "container"]))
    word = draw(st.sampled_from([*PROCESS_NAMES, *CONTAINERS, "gin", "NG", "443", ""]))
    op = draw(st.sampled_from([*TEXT_OPS]))
    written = quote(word) if not word or set(word) & set(' "\\') or draw(st.booleans()) else word
    return f"{field}{draw(spaces)}{op}{draw(spaces)}{written}", textual(field, op, word)


@st.composite
def state_terms(draw: st.DrawFn) -> Term:
    """Draw `state = estab`."""
    op = draw(st.sampled_from(["=", "!="]))
    labels = {
        "ESTABLISHED": "ESTABLISHED",
        "estab": "ESTABLISHED",
        "close": "CLOSE",
        "FIN_WAIT1": "FIN_WAIT1",
    }
    word = draw(st.sampled_from([*labels]))
    return f"state{draw(spaces)}{op}{draw(spaces)}{word}", textual("state", op, labels[word])


@st.composite
def state_part_terms(draw: st.DrawFn) -> Term:
    """Draw `state ~ wait`."""
    op, word = draw(st.sampled_from(["~", "!~"])), draw(st.sampled_from(["wait", "SYN", "x"]))
    return f"state{op}{word}", textual("state", op, word)


@st.composite
def address_terms(draw: st.DrawFn) -> Term:
    """Draw `remote_address = 10.0.0.0/8`."""
    field = draw(st.sampled_from(["local_address", "remote_address"]))
    networks = [
        *V4,
        *V6,
        "10.0.0.0/8",
        "10.0.3.99/24",
        "0.0.0.0/0",
        "::/0",
        "2001:db8::/32",
        "::ffff:0:0/96",
        "fe80::/10",
    ]
    network, equal = draw(st.sampled_from(networks)), draw(st.booleans())
    inside = within(field, network)
    return f"{field}{'=' if equal else '!='}{network}", lambda row: inside(row) == equal


@st.composite
def address_part_terms(draw: st.DrawFn) -> Term:
    """Draw `remote_address ~ 10.0.`."""
    field = draw(st.sampled_from(["local_address", "remote_address"]))
    op, word = draw(st.sampled_from(["~", "!~"])), draw(st.sampled_from(["10.0.", "db8", "::", ".7", "zz"]))
    return f"{field}{op}{word}", textual(field, op, word)


@st.composite
def endpoint_terms(draw: st.DrawFn) -> Term:
    """Draw `local = 10.0.0.7:443`, `local = :443` or `local = 10.0.0.7`."""
    side, equal = draw(st.sampled_from(["local", "remote"])), draw(st.booleans())
    address, port = draw(st.sampled_from(["", *V4, *V6])), draw(st.sampled_from([*NUMBERS, None]))
    if not address and port is None:
        port = 443
    same = within(f"{side}_address", address) if address else lambda row: True

    def model(row: Row) -> bool:
        if port is None:
            return same(row) == equal
        there = row[f"{side}_port"]
        return there is not None and (same(row) and there == port) == equal

    word = shown(address, port) if port is not None else address
    return f"{side}{'=' if equal else '!='}{word}", model


@st.composite
def endpoint_part_terms(draw: st.DrawFn) -> Term:
    """Draw `remote ~ 7:44`."""
    side, op = draw(st.sampled_from(["local", "remote"])), draw(st.sampled_from(["~", "!~"]))
    word = draw(st.sampled_from(["10.0.", "7:44", ":443", "db8", "]:2", "zz"]))
    return f"{side}{op}{word}", lambda row: TEXT_OPS[op](
        shown(row[f"{side}_address"], row[f"{side}_port"]), word
    )


@st.composite
def owner_terms(draw: st.DrawFn) -> Term:
    """Draw `owner ~ nginx`: any of process, PID and container."""
    word, there = draw(st.sampled_from(["nginx", "443", "1812", "docker", "zz"])), draw(st.booleans())

    def model(row: Row) -> bool:
        texts = [row["process"] or "", row["container"] or ""]
        matches = any(word in text.lower() for text in texts) or (word.isdigit() and row["pid"] == int(word))
        return matches if there else row["process"] is not None and not matches

    return f"owner{'~' if there else '!~'}{word}", model


@st.composite
def word_terms(draw: st.DrawFn) -> Term:
    """Draw `nginx`, `"a b"`, `443` or `10.0.`."""
    word = draw(
        st.sampled_from(
            ["nginx", "SSHD", "443", "22", "10.0.", "db8", "estab", "4", "tcp", "zz", "a b", "(sd"]
        )
    )
    written = quote(word) if set(word) & set(" (") or draw(st.booleans()) else word
    return written, anywhere(word)


@st.composite
def shortcut_terms(draw: st.DrawFn) -> Term:
    """Draw `:443` or `10.0.0.7:443`, on either side."""
    address, port = draw(st.sampled_from(["", *V4, *V6])), draw(st.sampled_from(NUMBERS))

    def model(row: Row) -> bool:
        return any(
            row[f"{side}_port"] == port and (not address or within(f"{side}_address", address)(row))
            for side in ("local", "remote")
        )

    return shown(address, port) if address else f":{port}", model


@st.composite
def whole_address_terms(draw: st.DrawFn) -> Term:
    """Draw `10.0.0.0/8` or `::1`, on either side."""
    network = draw(st.sampled_from([*V4, *V6, "10.0.0.0/8", "2001:db8::/32", "::/0", "0.0.0.0/0"]))
    local, remote = within("local_address", network), within("remote_address", network)
    return network, lambda row: local(row) or remote(row)


@st.composite
def either_port_terms(draw: st.DrawFn) -> Term:
    """Draw `port=443` (one of the ports) or `port!=443` (none, and one is known)."""
    op, number = draw(st.sampled_from([*ORDERS])), draw(st.sampled_from(NUMBERS))

    def model(row: Row) -> bool:
        ports = [row[name] for name in ("local_port", "remote_port") if row[name] is not None]
        passes = any(ORDERS["=" if op == "!=" else op](port, number) for port in ports)
        return bool(ports) and not passes if op == "!=" else passes

    return f"port{draw(spaces)}{op}{draw(spaces)}{number}", model


@st.composite
def title_terms(draw: st.DrawFn) -> Term:
    """Draw `RTT MIN > 10 ms`, `retr>1%` or `PID=1`: titles as on the screen."""
    text, field, op, number = draw(
        st.sampled_from(
            [
                ("RTT VAR > 10 ms", "rtt_var_us", ">", 10_000),
                ("rtt var<=10ms", "rtt_var_us", "<=", 10_000),
                ("Sent>=443", "bytes_sent", ">=", 443),
                ("LPORT!=22", "local_port", "!=", 22),
            ]
        )
    )
    return text, ordered(field, op, number)


terms = st.one_of(
    label_terms(),
    amount_terms(),
    whole_terms(),
    ratio_terms(),
    text_terms(),
    state_terms(),
    state_part_terms(),
    address_terms(),
    address_part_terms(),
    endpoint_terms(),
    endpoint_part_terms(),
    owner_terms(),
    word_terms(),
    shortcut_terms(),
    whole_address_terms(),
    either_port_terms(),
    title_terms(),
)


def negated(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    """Draw `not (…)`, also without parentheses."""
    return st.tuples(st.sampled_from(["not {}", "NOT  ({})", "not({} )"]), inner).map(
        lambda drawn: (drawn[0].format(drawn[1][0]), lambda row: not drawn[1][1](row))
    )


def joined(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    """Draw `(… or …)`, `(… and …)` or `( … … )`."""
    joins = {"({} or {})": any, "( {} OR {} )": any, "({} and {})": all, "({}  {} )": all}

    def join(drawn: tuple[str, Term, Term]) -> Term:
        form, *both = drawn
        texts, models = zip(*both, strict=True)
        return form.format(*texts), lambda row: joins[form](model(row) for model in models)

    return st.tuples(st.sampled_from([*joins]), inner, inner).map(join)


formulas = st.recursive(terms, lambda inner: negated(inner) | joined(inner), max_leaves=5)


@given(rows, terms)
def test_a_term_passes_what_the_model_passes(each: list[Row], term: Term) -> None:
    """Every kind of term, on rows with unknown values, both families and numbers beyond 2^53."""
    text, model = term
    assert passed(each, text) == expected(each, model), text


@given(rows, st.lists(terms, max_size=4), spaces)
def test_all_terms_must_hold(each: list[Row], several: list[Term], space: str) -> None:
    """A filter is the conjunction of its terms, however many and however spaced; none passes all."""
    text = space + f" {space}".join(text for text, _ in several) + space
    assert passed(each, text) == expected(each, lambda row: all(model(row) for _, model in several)), text


@given(rows, formulas)
def test_not_or_and_parentheses(each: list[Row], formula: Term) -> None:
    """Formulas of terms pass what the model passes: `not` all rows that its term does not, unknown values included."""
    text, model = formula
    assert passed(each, text) == expected(each, model), text


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("pid=1 or pid=2 uid=7", "pid=1 or (pid=2 and uid=7)"),
        ("uid=7 pid=1 or pid=2", "(uid=7 and pid=1) or pid=2"),
        ("not pid=1 uid=7", "(not pid=1) and uid=7"),
        ("not not pid=1", "pid=1"),
        ("pid=1 AND uid=7", "pid=1 uid=7"),
        ("(((pid=1)))or(uid=7)", "pid=1 or uid=7"),
        ("process=(sd-pam) or pid=2", 'process="(sd-pam)" or pid=2'),
        ("(process=(sd-pam))", 'process="(sd-pam)"'),
        ('process="or"', "process=or"),
        ("rtt_us>10 or ms", '(rtt_us>10) or "ms"'),
        ("(rtt>1 ms)", "rtt_us>1000"),
    ],
)
def test_operator_precedence(text: str, means: str) -> None:
    """`not` before `and`, `and` before `or`; in quotes and in pairs within a value none of them means anything."""
    names, rtts = ("(sd-pam)", "or", "ms"), (10, 1001)
    numbers = [{"pid": pid, "uid": uid, "rtt_us": rtt} for pid in (1, 2) for uid in (7, 8) for rtt in rtts]
    each: list[Row] = [row | {"process": name} for row in numbers for name in names]
    assert passed(each, text) == passed(each, means)
    assert 0 < len(passed(each, text)) < len(each)


def test_not_passes_what_is_unknown() -> None:
    """`!=` compares, and is never true of an unknown value; `not` passes whatever its term does not."""
    each = [{"rtt_us": 20_000}, {"rtt_us": 5}, {"rtt_us": None}]
    assert passed(each, "rtt_us<=10ms") == [2]
    assert passed(each, "not rtt_us>10ms") == [2, 3]


# --- forms of other tools -------------------------------------------------------------------------------------

SAME_AS = {
    "port 443": "port=443",
    "PID 1812": "pid=1812",
    "not port 443 nginx": "not port=443 and nginx",
    "local :443": "local=:443",
    "remote_address 10.0.0.0/8": "remote_address=10.0.0.0/8",
    "state listen": "state=LISTEN",
    "process:nginx": "process=nginx",
    "proto:tcp": "protocol=tcp",
    "state:LISTEN pid=7": "state=LISTEN and pid=7",
    "process='nginx'": "process=nginx",
    "process = 'a b'": 'process="a b"',
    "'a b'": '"a b"',
    "process==nginx": "process=nginx",
    "process is nginx": "process=nginx",
    "process contains gin": "process~gin",
    "process=nginx,sshd": "process=nginx or process=sshd",
    "process = nginx, sshd": "process=nginx or process=sshd",
    "process!=nginx,sshd": "process!=nginx and process!=sshd",
    "process~gin,ssh": "process~gin or process~ssh",
    "process in (nginx, 'a b')": 'process=nginx or process="a b"',
    "process not in (nginx, sshd)": "process!=nginx and process!=sshd",
    "process IN(nginx) or pid in (7)": "process=nginx or pid=7",
    "port=80,443": "port=80 or port=443",
    "rtt_us in (5, 1ms)": "rtt_us=5 or rtt_us=1000",
    "nginx,sshd": "nginx or sshd",
    "pid=7 && port=9": "pid=7 and port=9",
    "pid=7&&port=9": "pid=7 and port=9",
    "pid=7||nginx": "pid=7 or nginx",
    "nginx|sshd": "nginx or sshd",
    "!nginx": "not nginx",
    "-nginx": "not nginx",
    "-(nginx || pid=7)": "not (nginx or pid=7)",
    "pid=7 !process=nginx": "pid=7 and not process=nginx",
    ":80-443": "port>=80 and port<=443 and (port=80 or port=443)",
    "local=10.0.0.7:80-443": "local_address=10.0.0.7 and local_port>=80 and local_port<=443",
    "localhost": "127.0.0.0/8 or ::1",
    "localhost:443": "127.0.0.1:443 or 127.0.0.2:443 or [::1]:443",
    "remote_address=localhost": "remote_address=127.0.0.0/8 or remote_address=::1",
    "remote!=localhost": "not (remote_address=127.0.0.0/8 or remote_address=::1)",
    "process=ng*": "process=nginx",
    "process!=*n*": "process=sshd or process~a",
    "process~g*x": "process=nginx",
    "n*x": "process=nginx",
    "state=LIST*": "state=LISTEN",
    "10.0.*": "10.0.0.0/16",
}
"""What people type who know another tool, and the filter with the same rows."""


def hosts() -> list[Row]:
    """Return connections that differ in everything the filters above name."""
    processes, ports = ("nginx", "sshd", "a", "a b", "java", None), (80, 443, 7, 9)
    addresses = ("10.0.0.7", "127.0.0.1", "127.0.0.2", "::1")
    return [
        {
            "process": processes[at % 6],
            "pid": (7, 8, 1812)[at % 3],
            "local_port": ports[at % 4],
            "remote_port": (50_000, 443)[at // 4 % 2],
            "local_address": addresses[at // 3 % 4],
            "remote_address": addresses[at // 5 % 4],
            "state": ("LISTEN", "ESTABLISHED")[at % 2],
            "protocol": ("tcp", "udp")[at // 7 % 2],
            "rtt_us": (5, 1000, 2000, None)[at // 2 % 4],
        }
        for at in range(240)
    ]


@pytest.mark.parametrize("typed", SAME_AS)
def test_forms_of_other_tools(typed: str) -> None:
    """They are understood, and pass what the filter passes that nettop's own documents would name."""
    each = hosts()
    assert passed(each, typed) == passed(each, SAME_AS[typed])
    assert 0 < len(passed(each, typed)) < len(each)


@pytest.mark.parametrize(
    ("typed", "what", "remedy"),
    [
        ("src 10.99.1.1", "unknown field 'src'", "did you mean local?"),
        ("dst=10.99.1.1", "unknown field 'dst'", "did you mean remote?"),
        ("sport:443", "unknown field 'sport'", "did you mean local_port?"),
        ("interface eth0", "unknown field 'interface'", "did you mean"),
        ("rtt 10ms", "rtt needs an operator", "write rtt>10ms"),
        ("process=~n.*x", "there are no regular expressions", "process~text"),
        ("/py.*/", "/py.*/ has no meaning", '"/py.*/"'),
        ("^nginx", "^ has no meaning", '"^nginx"'),
        ("nginx$", "$ has no meaning", "* matches any text"),
        ("process=ngin?", "? has no meaning", "* matches any text"),
        ("process=`id`", "` has no meaning", "to find the text itself"),
        ("process in (a", "this ( is not closed", "add )"),
        ("process=a,", "the value is missing", "after the operator"),
        ("process='a", "the quote is not closed", "…"),
    ],
)
def test_forms_that_mean_nothing_are_refused(typed: str, what: str, remedy: str) -> None:
    """What no row would match is an error that names the right form, not an empty table."""
    with pytest.raises(FilterError) as caught:
        parse_filter(SOCKETS, typed)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("form", ["{}nginx", "nginx{}", "ng{}inx", "process=ng{}inx", "pid=7 or {}"])
@pytest.mark.parametrize("sign", "$;?\\^{}`")
def test_a_sign_without_a_meaning_is_refused_or_quoted(sign: str, form: str) -> None:
    """Without quotes it is refused; in quotes it is text."""
    where = "here" if form == "pid=7 or {}" else "in "
    with pytest.raises(FilterError, match=re.escape(f"{sign} has no meaning {where}")):
        parse_filter(SOCKETS, form.format(sign))
    each = [{"process": "nginx"}, {"process": f"ng{sign}inx"}]
    assert passed(each, quote(f"ng{sign}in")) == passed(each, f"process='ng{quote(sign)[1:-1]}inx'") == [2]


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        ("/py.*/", "filter: /py.*/ has no meaning here"),
        ("process=/py.*/", "filter term ‘process=/py.*/’: /py.*/ has no meaning here"),
        ("py.?", "filter term ‘py.?’: ? has no meaning in py.?"),
    ],
)
def test_a_part_without_a_meaning_is_named_once(typed: str, what: str) -> None:
    """Do not repeat the value if the whole of it has no meaning, nor the term."""
    with pytest.raises(FilterError) as caught:
        parse_filter(SOCKETS, typed)
    assert caught.value.what == what


def test_words_beside_each_other_are_still_words() -> None:
    """Two words of which the first is no field are two texts, also with a colon, a slash or an apostrophe in quotes."""
    each = [
        {"process": "kworker/0:1", "container": "docker:ab12"},
        {"process": "nginx", "container": "it's (1)"},
    ]
    assert passed(each, "docker:ab12 kworker/0:1") == [1]
    assert passed(each, 'nginx "it\'s"') == [2]


def test_a_pattern_is_matched_in_linear_time() -> None:
    """Many stars before a text that is not there: a client of the API may send this."""
    each = [{"process": "a" * 4000}]
    assert passed(each, "process=" + "*a" * 200 + "*b") == []


# --- what the model does not say ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["local!=:443", "local!=10.0.0.7:443", "local!=10.9.9.9:443"])
def test_an_unknown_port_differs_from_no_port(text: str) -> None:
    """A comparison with an unknown value is never true: without a port a row is not shown as another endpoint."""
    ports = [{"local_address": "10.0.0.7", "local_port": port} for port in (443, 80, None)]
    assert passed(ports, text) == ([1, 2] if "10.9.9.9" in text else [2])


@pytest.mark.parametrize("text", ["", "   "])
def test_the_empty_filter_passes_all(text: str) -> None:
    """No condition hides nothing."""
    assert parse_filter(SOCKETS, text).is_empty
    assert passed(example_rows(5), text) == [4096, 4097, 4098, 4099, 4100]


def test_a_time_is_compared_to_the_microsecond() -> None:
    """Times without a zone are in UTC."""
    ns = 1_795_046_645_000_006_000  # 2026-11-19T00:04:05.000006Z
    opened = [{"opened_at": at} for at in (ns - 1000, ns, ns + 1000)]
    for text in (
        "2026-11-19T00:04:05.000006Z",
        "2026-11-19T01:04:05.000006+01:00",
        "2026-11-19T00:04:05.000006",
    ):
        assert passed(opened, f"opened_at={text}") == [2]


def test_a_filter_is_a_value() -> None:
    """Filters of the same text are equal and hash alike, so that a cached view can be kept by its filter."""
    filter_, same, other = (parse_filter(SOCKETS, text) for text in ("pid=1", "pid=1", "pid=2"))
    assert filter_ == same
    assert hash(filter_) == hash(same)
    assert filter_ != other
    assert filter_.text == "pid=1"


@given(st.text())
def test_any_text_is_a_filter_or_a_usage_error(text: str) -> None:
    """Somebody types: half a term, brackets, control characters. It works, or says how to mend it."""
    refused = None
    try:
        accepted = parse_filter(SOCKETS, text)
        assert accepted.mask(make_view(make_frame(example_rows(3)))).shape == (3,)
    except UsageError as error:
        refused = error
    assert refused is None or (refused.what.startswith("filter") and refused.remedy)


@given(st.text(min_size=1))
def test_a_quoted_word_finds_itself(word: str) -> None:
    """`quote` makes one word of any text, and the filter finds a process of that name."""
    assert passed([{"process": word}, {"process": None, "container": None}], f"process={quote(word)}") == [1]
    assert 1 in passed([{"process": word}], quote(word))


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("pod=3", "‘pod=3’: unknown field 'pod'", "did you mean pid"),
        ("nginx stat=LISTEN", "‘stat=LISTEN’: unknown field 'stat'", "did you mean state"),
        ("state=LISTN", "unknown state 'LISTN'", "did you mean LISTEN"),
        ("state=FIN", "'FIN' could be FIN_WAIT1 or FIN_WAIT2", "state~FIN"),
        ("state>LISTEN", "state does not support >", "= != ~ !~"),
        ("pid~18", "pid does not support ~", "= != > >= < <="),
        ("pid=nginx", "pid is a whole number, not 'nginx'", "pid=80"),
        ("pid=1.5", "pid is a whole number", "pid=80"),
        ("process>a", "process does not support >", "= != ~ !~"),
        ("rtt_us>3q", "'3q' is not an amount in us", "10ms"),
        ("rtt_us>", "the value is missing", "after the operator"),
        ("rtt_us > ", "the value is missing", "after the operator"),
        ("bytes_sent>10Mb", "'10Mb' is not an amount in bytes", "2GiB"),
        ("remote_address=10.0.", "'10.0.' is not an address or network", "~ finds a part"),
        ("remote_address=10.0.0.0/33", "is not an address or network", "10.0.0.0/8"),
        ("remote=web", "'web' is not an address or network", "10.0.0.7"),
        ("opened_at>yesterday", "'yesterday' is not a time", "2026-11-20T08:00:00Z"),
        ('process="a b', "the quote is not closed", "…"),
        ('"a"b', "the quote is not closed, or has no space after it", "…"),
        (">5", "no field before the operator", "rtt_us>10ms"),
        ("nginx or", "filter: a term is missing here", "field=value"),
        ("or sshd", "‘or’: a term is missing here", '"or"'),
        ("()", "‘)’: a term is missing here", "field=value"),
        ("(nginx", "‘(nginx’: this ( is not closed", "add )"),
        ("nginx)", "‘)’: this ) has no matching (", "remove it"),
        ("process=(sd", "the value is missing", "quotes allow parentheses"),
        ("port=nginx", "is a whole number, not 'nginx'", "80"),
        ("snt/s>1M", "unknown field 'snt/s'", "did you mean SENT/s"),
        ("REETR>1%", "unknown field 'REETR'", "did you mean RETR"),
        ("adress=10.0.0.1", "unknown field 'adress'", "did you mean address"),
        ("(" * 51 + "nginx" + ")" * 51, "more than 50 nested parentheses", "fewer"),
        ("not " * 51 + "nginx", "more than 50 nested parentheses", "fewer"),
    ],
)
def test_bad_input_says_what_where_and_how_to_mend_it(text: str, what: str, remedy: str) -> None:
    """The term is named, what is wrong with it, and what to write instead."""
    with pytest.raises(UsageError) as caught:
        parse_filter(SOCKETS, text)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "pointed"),
    [
        ("nginx stat=LISTEN", "stat=LISTEN"),
        ("nginx pid=x or uid=1", "x or uid=1"),
        ("pid=1 state>LISTEN", "state>LISTEN"),
        ("pid=1 rtt_us> 3q", "3q"),
        ("pid=1 rtt_us>", ""),
        ('process="a b', '"a b'),
        ("a or (b (pid=1) c", "(b (pid=1) c"),
        ("(a) b) c", ") c"),
        ("a or or b", "or b"),
        ("not", ""),
        ("port=1 port=x", "x"),
    ],
)
def test_the_place_of_an_error(text: str, pointed: str) -> None:
    """At the field, the value or the parenthesis that is wrong, not at the beginning of the filter."""
    with pytest.raises(FilterError) as caught:
        parse_filter(SOCKETS, text)
    assert caught.value.text == text
    assert text[caught.value.at :] == pointed


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SENT/s>1M", "bytes_sent_per_s"),
        ("sent/s > 1M", "bytes_sent_per_s"),
        ("rate>1M", "bytes_per_s"),
        ("retr>1%", "retransmit_ratio"),
        ("RTT  MIN>1ms", "rtt_min_us"),
        ("process=nginx", "process"),
        ("OPENED>2026-11-20", "opened_at"),
        ("opened utc>2026-11-20", "opened_at"),
        ("Rtt ±VAR>1ms", "rtt"),
    ],
)
def test_titles_are_names(text: str, name: str) -> None:
    """As the screen shows them, in either case; a declared name means its own column."""
    assert parse_filter(SOCKETS, text).names == (name,)
    assert parse_filter(SOCKETS, f"not (nginx or {text})").names == (name,)


def test_a_title_of_two_columns_means_the_one_on_the_screen() -> None:
    """DROP IN is a total and a rate: the screen opens with the rate."""
    assert parse_filter(INTERFACES, "drop in>0").names == ("drops_received_per_s",)
    assert parse_filter(PROCESSES, "TX SYS>5%").names == ("tx_syscalls_ns_per_s",)


@pytest.mark.parametrize("table", [t for lens in lenses() for t in lens.tables], ids=lambda t: t.name)
def test_every_title_on_the_screen_means_its_column(table: Table) -> None:
    """But where it is the name of another one, which says its own."""
    for name in table.screen:
        title = table.title_of(name)
        field = table.by_name.get(name)
        value = "5" if field is None else _VALUES.get(field.kind, "5")
        meant = title.lower() if title.lower() in table.names else name
        if value:
            assert parse_filter(table, f"{title}={value}").names == (meant,)


_TEXTUAL = dict.fromkeys((Kind.TEXT, Kind.ENUM, Kind.ADDRESS, Kind.ENDPOINT), "–")
_VALUES = _TEXTUAL | {Kind.TIME: "2026-11-20", Kind.HISTOGRAM: ""}


@pytest.mark.parametrize(
    "text", [":99999", "port=65536", "local_port>65536", "local=:99999", "not remote_port=70000"]
)
def test_a_port_that_cannot_be(text: str) -> None:
    """No row could pass, and an empty table would look like a quiet port."""
    with pytest.raises(FilterError, match=r"there is no port (99999|65536|70000)"):
        parse_filter(SOCKETS, text)
    parse_filter(SOCKETS, text.replace("99999", "65535").replace("65536", "65535").replace("70000", "65535"))


def test_port_and_address_mean_all_of_a_table() -> None:
    """They compare the ports of all endpoints, and all addresses; a declared `port` is itself."""
    assert parse_filter(SOCKETS, "port=443").names == ("local_port", "remote_port")
    assert parse_filter(SOCKETS, "Addr!=10.0.0.0/8").names == ("local_address", "remote_address")
    assert parse_filter(FAILURES, "port=443 address=10.0.0.0/8").names == ("port", "remote_address")
    sides = {
        "local_address": "10.0.0.7",
        "remote_address": "203.0.113.9",
        "local_port": 443,
        "remote_port": None,
    }
    each = [
        sides,
        sides | {"local_port": 80},
        sides | {"local_port": None},
        sides | {"local_address": "192.0.2.1"},
    ]
    assert passed(each, "port!=443") == [2]
    assert passed(each, "port=–") == [1, 2, 3, 4]
    assert passed(each, "port!=–") == []
    assert passed(each, "address!=10.0.0.0/8") == [4]
    assert passed(each, "address~10.0. not address~113.9") == []


def test_a_whole_address_is_no_part_of_a_longer_one() -> None:
    """`10.0.0.7` does not find 10.0.0.70; a part of an address still finds any text."""
    each = [{"remote_address": "10.0.0.7"}, {"remote_address": "10.0.0.70"}, {"process": "v10.0.0."}]
    assert passed(each, "10.0.0.7") == [1]
    assert passed(each, "10.0.0.") == [1, 2, 3]
    assert passed(each, '"10.0.0.7"') == [1, 2]


def test_a_table_without_addresses_takes_one_as_a_word() -> None:
    """As groups by network do, whose names are texts."""
    frame = make_frame([{"group": "10.0.3.0/24"}, {"group": "10.0.4.0/24"}], table=GROUPS)
    assert make_view(frame, "10.0.3.0/24", "id", all_rows=True).order.tolist() == [0]


def test_a_word_where_there_are_no_texts() -> None:
    """It can be in no row: that is said instead of an empty table."""
    with pytest.raises(UsageError, match="no column of cpus can hold 'nginx'"):
        parse_filter(CPUS, "nginx")


@pytest.mark.parametrize(
    ("texts", "text"),
    [
        ([], ""),
        (["pid=1", " "], "pid=1"),
        (["pid=1 or pid=2"], "pid=1 or pid=2"),
        (["pid=1 or pid=2", "uid=7"], "(pid=1 or pid=2) and uid=7"),
        (["rtt_us>10", "ms"], "rtt_us>10 and ms"),
    ],
)
def test_several_filters_must_all_hold(texts: list[str], text: str) -> None:
    """Each is read alone; together they are one filter, whose text means the same."""
    both = combined(SOCKETS, [parse_filter(SOCKETS, each) for each in texts])
    assert both == parse_filter(SOCKETS, text)
    each = [{"pid": pid, "uid": uid, "rtt_us": 20, "process": "ms"} for pid in (1, 2, 3) for uid in (7, 8)]
    view = make_view(make_frame(each), all_rows=True)
    assert both.mask(view).tolist() == parse_filter(SOCKETS, text).mask(view).tolist()


def test_field_names_may_be_in_capitals() -> None:
    """The headers of the screen are in capitals, so PID=7 is natural."""
    assert passed([{"pid": 7}, {"pid": 8}], "PID=7") == [1]


def test_times_compare_with_dates() -> None:
    """`opened_at` takes RFC 3339; without a zone it is UTC."""
    moment = 1_795_132_800_000_000_000  # 2026-11-20T00:00:00Z
    each = [{"opened_at": moment - 1}, {"opened_at": moment}, {"opened_at": None}]
    assert passed(each, "opened_at>=2026-11-20") == [2]
    assert passed(each, "opened_at<2026-11-20T01:00:00+01:00") == [1]


def test_rates_and_differences_compare_as_shown() -> None:
    """A rate takes bits or bytes per second; a counter seen as a difference is compared as the difference."""
    before = [{"id": 1, "bytes_sent": 1_000_000}, {"id": 2, "bytes_sent": 1_000_000}]
    now = [{"id": 1, "bytes_sent": 1_250_000}, {"id": 2, "bytes_sent": 1_250_001}, {"id": 3, "bytes_sent": 9}]
    frame = make_frame(now, before, 2.0)
    for text, keys in (("bytes_sent_per_s>1Mb/s", [2]), ("bytes_sent_per_s>=125kB/s", [1, 2])):
        assert make_view(frame, text, "id").order.tolist() == [key - 1 for key in keys]
    assert make_view(frame, "bytes_sent>1M", "id").order.tolist() == [0, 1]
    assert make_view(frame, "bytes_sent>250k", "id", deltas=True).order.tolist() == [1]


def test_a_resolved_name_matches_like_its_address() -> None:
    """Where names are shown, words and ~ find the name and still the address."""
    frame = make_frame([{"remote_address": "203.0.113.9"}, {"remote_address": "203.0.113.10"}])
    for text in ("example", "remote_address~example", "remote~EXAMPLE", "113.9"):
        query = make_view(frame, text, all_rows=True).query
        view = type(make_view(frame))(frame, query, lambda raw: "web.example.com" if raw[-1] == 9 else None)
        assert view.order.tolist() == [0]


def test_a_table_without_endpoints_takes_a_port_as_a_word() -> None:
    """Shortcuts come from what the table declares, not from the connections table."""
    buckets = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)
    fields = (
        Field("n", Kind.KEY, "N", "place", "u8"),
        Field("note", Kind.TEXT, "NOTE", "anything", "u4"),
        Field("shape", Kind.HISTOGRAM, "SHAPE", "buckets", buckets.dtype, buckets=buckets),
    )
    table = Table("notes", fields, ("note",), "n", key="n")
    view = make_view(make_frame([{"note": "at :443 sharp"}, {"note": "443"}], table=table), ":443", "n")
    assert np.flatnonzero(view.query.filter.mask(view)).tolist() == [0]
    with pytest.raises(UsageError, match="histogram"):
        parse_filter(table, "shape>3")


def test_a_device_behind_an_address() -> None:
    """It is compared where sockets have one; elsewhere an address with a device would pass those of any."""
    with pytest.raises(UsageError, match="'fe80::2%lan1' names a device, which remote_address does not have"):
        parse_filter(FAILURES, "remote_address=fe80::2%lan1")
    with pytest.raises(UsageError, match="names a device"):
        parse_filter(FAILURES, "fe80::2%lan1")
    with pytest.raises(UsageError, match="is not an address or network"):
        parse_filter(SOCKETS, "remote=fe80::2%lan1/64")
