# SPDX-License-Identifier: Apache-2.0
"""Filters: the rows that each kind of term passes, forms of other tools, and errors."""

from __future__ import annotations

import re
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

NAMES = ("process", "container", "pid", "uid", "state", "local_address", "local_port", "remote_address", "remote_port",
         "rtt_us", "bytes_sent", "retransmits", "data_packets_sent")  # fmt: skip
VALUES: list[tuple[Any, ...]] = [
    ("nginx", "docker:ab12", 443, 0, "ESTABLISHED", "10.0.0.7", 443, "203.0.113.255", 1812, 9_999, 2**53, 1, 100),
    ("NGINX", None, 1812, 22, "LISTEN", "0.0.0.0", 22, "::", None, 10_000, 2**53 + 1, 5, 100),
    ("sshd", "nginx.service", 22, 443, "FIN_WAIT1", "2001:db8::7", 443, "fe80::443", 22, 10_001, 2**64 - 2, 0, 500),
    ("a b", "podman:443", 1, 1, "CLOSE", "::1", 0, "10.0.3.7", 443, 3_000_000, 0, 5, 0),
    ('quo"te\\', None, 0, 1812, "CLOSE_WAIT", "192.168.1.1", 1, "10.0.0.7", 443, 0, 999_999, None, 100),
    ("(sd-pam)", None, None, None, None, "10.0.3.7", None, "2001:db8::7", None, None, None, 5, None),
    (None, None, None, None, None, "::", None, "0.0.0.0", None, None, None, None, None),
]  # fmt: skip
"""Rows with unknown values, both families, texts with signs, and numbers beyond a float's precision."""
ROWS = [dict(zip(NAMES, values, strict=True)) for values in VALUES]


def passed(each: list[Row], text: str, **query: Any) -> list[int]:
    """Return the keys of the rows that the filter passes."""
    view = make_view(make_frame(each), text, all_rows=True, **query)
    mask = view.query.filter.mask(view)
    assert mask.dtype == bool
    assert mask.shape == (view.size,)
    return view.raw("id")[mask].tolist()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("pid=443", [1]),
        ("pid!=443", [2, 3, 4, 5]),
        ("pid>22", [1, 2]),
        ("pid>=22", [1, 2, 3]),
        ("pid<22", [4, 5]),
        ("uid<=22", [1, 2, 4]),
        ("local_port>443", []),
        ("remote_port=–", [2, 6, 7]),
        ("rtt_us>10ms", [3, 4]),
        ("rtt_us >= 10 ms", [2, 3, 4]),
        ("rtt_us=10001us", [3]),
        ("rtt_us!=3s", [1, 2, 3, 5]),
        ("rtt<9999", [5]),
        ("RTT <= 10ms", [1, 2, 5]),
        ("bytes_sent=9007199254740993", [2]),
        ("bytes_sent>9007199254740992", [2, 3]),
        ("bytes_sent=18446744073709551614", [3]),
        ("bytes_sent<99999999999999999999", [1, 2, 3, 4, 5]),
        ("Sent>=1M", [1, 2, 3]),
        ("retransmit_ratio>1%", [2]),
        ("retransmit_ratio=0.01", [1]),
        ("retransmit_ratio<=0", [3]),
        ("retransmit_ratio!=5%", [1, 3]),
        ("process=nginx", [1, 2]),
        ("process != nginx", [3, 4, 5, 6]),
        ("process~gin", [1, 2]),
        ("process!~NG", [3, 4, 5, 6]),
        ('process=""', []),
        ('process~""', [1, 2, 3, 4, 5, 6]),
        ('process = "a b"', [4]),
        ('process="quo\\"te\\\\"', [5]),
        ("process=(sd-pam)", [6]),
        ("container=–", [2, 5, 6, 7]),
        ("container~443", [4]),
        ("state=estab", [1]),
        ("state=close", [4]),
        ("state!=FIN_WAIT1", [1, 2, 4, 5]),
        ("state~wait", [3, 5]),
        ("state!~x", [1, 2, 3, 4, 5]),
        ("remote_address=10.0.0.0/8", [4, 5]),
        ("remote_address!=10.0.0.0/8", [1, 2, 3, 6, 7]),
        ("local_address=10.0.3.99/24", [6]),
        ("local_address=::/0", [1, 2, 3, 4, 5, 6, 7]),
        ("remote_address=0.0.0.0/0", [1, 4, 5, 7]),
        ("local_address=2001:db8::/32", [3]),
        ("local_address=::ffff:0:0/96", [1, 2, 5, 6]),
        ("remote_address=fe80::/10", [3]),
        ("remote_address~10.0.", [4, 5]),
        ("local_address!~::", [1, 2, 5, 6]),
        ("remote_address~zz", []),
        ("local=10.0.0.7:443", [1]),
        ("local!=10.0.0.7:443", [2, 3, 4, 5]),
        ("local=:443", [1, 3]),
        ("local!=:443", [2, 4, 5]),
        ("remote=10.0.0.7", [5]),
        ("remote!=10.0.0.7", [1, 2, 3, 4, 6, 7]),
        ("local=[2001:db8::7]:443", [3]),
        ("remote~7:44", [4, 5]),
        ("remote!~db8", [1, 2, 3, 4, 5, 7]),
        ("local~]:4", [3]),
        ("owner~nginx", [1, 2, 3]),
        ("owner!~nginx", [4, 5, 6]),
        ("owner~1812", [2]),
        ("owner~docker", [1]),
        ("nginx", [1, 2, 3]),
        ("SSHD", [3]),
        ('"a b"', [4]),
        ("443", [1, 3, 4, 5]),
        ("10.0.", [1, 4, 5, 6]),
        ("db8", [3, 6]),
        ("estab", [1]),
        ("zz", []),
        ('"(sd"', [6]),
        ("tcp", [1, 2, 3, 4, 5, 6, 7]),
        (":443", [1, 3, 4, 5]),
        ("10.0.0.7:443", [1, 5]),
        ("[::1]:0", [4]),
        (":9", []),
        ("10.0.0.7", [1, 5]),
        ("10.0.0.0/8", [1, 4, 5, 6]),
        ("2001:db8::/32", [3, 6]),
        ("::/0", [1, 2, 3, 4, 5, 6, 7]),
        ("0.0.0.0/0", [1, 2, 4, 5, 6, 7]),
        ("port=443", [1, 3, 4, 5]),
        ("port!=443", [2]),
        ("port < 22", [4, 5]),
        ("LPORT!=22", [1, 3, 4, 5]),
    ],
)
def test_a_term_passes_these_rows(text: str, keys: list[int]) -> None:
    """Compare each kind of column with each kind of value; an unknown value passes no comparison."""
    assert passed(ROWS, text) == keys
    assert passed(ROWS, f"not ({text})") == [key for key in range(1, len(ROWS) + 1) if key not in keys]
    assert passed(ROWS, f"{text} or pid=22") == sorted({*keys, 3})
    assert passed(ROWS, f"{text}  pid=22") == [key for key in keys if key == 3]


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
    "Rtt ±VAR>1ms": "rtt_us>1000",
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
        assert passed(opened, f"OPENED={text}") == [2]
    assert passed([*opened, {"opened_at": None}], "opened utc>=2026-11-19") == [1, 2, 3]
    assert passed([*opened, {"opened_at": None}], "opened_at<2026-11-20T01:00:00+01:00") == [1, 2, 3]


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


def test_a_title_of_two_columns_means_the_one_on_the_screen() -> None:
    """DROP IN is a total and a rate: the screen opens with the rate."""
    assert parse_filter(INTERFACES, "drop in>0").names == ("drops_received_per_s",)
    assert parse_filter(PROCESSES, "TX SYS>5%").names == ("tx_syscalls_ns_per_s",)
    assert parse_filter(SOCKETS, "rate>1M").names == ("bytes_per_s",)


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
    both = combined(SOCKETS, [parse_filter(SOCKETS, one_text) for one_text in texts])
    assert both == parse_filter(SOCKETS, text)
    each = [{"pid": pid, "uid": uid, "rtt_us": 20, "process": "ms"} for pid in (1, 2, 3) for uid in (7, 8)]
    view = make_view(make_frame(each), all_rows=True)
    assert both.mask(view).tolist() == parse_filter(SOCKETS, text).mask(view).tolist()


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
