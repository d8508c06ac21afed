# SPDX-License-Identifier: Apache-2.0
"""What a query of a user may do in this process: read the tables of flows, and nothing of the host or the network.

The engine itself refuses writes, other settings and most table functions to a session with readonly=1. It lets through
what a program on a terminal may do: `file('/etc/shadow')`, INTO OUTFILE, a path as a table's name, KILL, and functions
that call out. So the query is parsed by the engine, and its syntax tree compared with lists of what is allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nettop.errors import UsageError
from nettop.flows.store.schema import DATABASE

QUERY_MAX = 65_536
"""The longest query, in characters."""
FORMATS = frozenset(
    (
        *("Arrow", "ArrowStream", "CSV", "CSVWithNames", "JSON", "JSONColumns", "JSONCompact"),
        *("JSONCompactEachRow", "JSONEachRow", "Markdown", "Native", "Null", "Parquet"),
        *("PrettyCompactMonoBlock", "RowBinary", "RowBinaryWithNamesAndTypes", "TSV", "TSVWithNames"),
        *("TabSeparated", "TabSeparatedWithNames", "Vertical"),
    )
)
"""The formats of answers: those that write only to the answer."""

_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What a query may take; the bytes of its answer are those before it is written in a format."""

    seconds: int = 60
    memory_bytes: int = 2 << 30
    answer_bytes: int = 256 << 20

    def settings(self) -> dict[str, int]:
        """ClickHouse's settings for a query that only reads."""
        return {
            "readonly": 1,
            "max_execution_time": self.seconds,
            "max_memory_usage": self.memory_bytes,
            "max_result_bytes": self.answer_bytes,
        }


_TOO_MUCH = {
    159: "took longer than {limits.seconds} s",
    241: "needed more than {limits.memory_bytes} bytes of memory",
    396: "has an answer of more than {limits.answer_bytes} bytes",
}
"""Of ClickHouse's codes TIMEOUT_EXCEEDED, MEMORY_LIMIT_EXCEEDED and TOO_MANY_ROWS_OR_BYTES."""

_ERROR = re.compile(r".*?Code: (\d+)\. DB::Exception: (.*?)(?: \([A-Z_]+\))?(?: \((?:version|for url) .*)?")

FUNCTIONS = (
    "SELECT name, alias_to, categories FROM system.functions WHERE NOT is_aggregate FORMAT JSONCompactEachRow"
)
"""The query whose answer `refused_functions` reads."""

_STATEMENTS = frozenset(("SelectWithUnionQuery", "ShowTablesQuery", "ShowColumnsQuery"))
_KINDS = frozenset(
    (
        *("DescribeQuery", "Explain", "SelectIntersectExceptQuery", "SelectWithUnionQuery", "ShowColumns"),
        *("ShowCreateTableQuery", "ShowTables"),
    )
)
"""The kinds of statements that may be executed, as EXPLAIN AST names them."""
_NODES = _STATEMENTS | {
    *("ArrayJoin", "Asterisk", "ColumnsApplyTransformer", "ColumnsExceptTransformer", "ColumnsListMatcher"),
    *("ColumnsRegexpMatcher", "ColumnsReplaceTransformer", "ColumnsReplaceTransformerReplacement"),
    *("ColumnsTransformerList", "ExplainQuery", "ExpressionList", "Function", "Identifier"),
    *("InterpolateElement", "Literal", "OrderByElement", "QualifiedAsterisk"),
    *("QualifiedColumnsListMatcher", "QualifiedColumnsRegexpMatcher", "SampleRatio"),
    *("SelectIntersectExceptQuery", "SelectQuery", "Subquery", "TableExpression", "TableIdentifier"),
    *("TableJoin", "TablesInSelectQuery", "TablesInSelectQueryElement", "WindowDefinition"),
    *("WindowListElement", "WithElement"),
}
"""What a query may consist of, by the engine's names."""
_DESCRIPTION = re.compile(
    rf"\s*(?:DESCRIBE|DESC|SHOW\s+CREATE)\s+(?:TABLE\s+)?(?:{DATABASE}\.)?\w+\s*;?\s*",
    re.IGNORECASE | re.ASCII,
)
"""Statements that have no syntax tree in JSON, and are simple enough to be known by their text."""
_NO_TREE = 36
"""ClickHouse's code BAD_ARGUMENTS, which is for statements of kinds that have no syntax tree in JSON."""
_SCOPE = ": In scope SELECT parseQueryToJSON"
"""What ClickHouse says behind an error, of the query of `parsing`."""
_SYSTEM = "system"
_DATABASES = frozenset((DATABASE, _SYSTEM, "information_schema"))
_SYSTEM_TABLES = frozenset(
    (
        *("build_options", "columns", "data_skipping_indices", "data_type_families", "databases", "formats"),
        *("functions", "keywords", "merges", "numbers", "numbers_mt", "one", "parts", "parts_columns"),
        *("projections", "settings", "table_engines", "table_functions", "tables", "time_zones", "zeros"),
        "zeros_mt",
    )
)
"""Those of its tables that say nothing of the host, the process, or the queries of others."""
_FILES = "default"
"""The database of chDB in which the path of a file is a table."""
_TABLE_FUNCTIONS = frozenset(
    (
        "numbers",
        "numbers_mt",
        "zeros",
        "zeros_mt",
        "generateseries",
        "generate_series",
        "values",
        "null",
        "view",
    )
)
_CATEGORIES = frozenset(
    (
        *("Arithmetic", "Arrays", "Bit", "Bitmap", "Comparison", "Conditional", "Dates and Times"),
        *("Distance", "Encoding", "Encryption", "Financial", "Geo", "Geo Polygon", "Hash", "IP Address"),
        *("JSON", "Logical", "Map", "Mathematical", "Null", "NumericIndexedVector", "Random Number"),
        *("Rounding", "String", "String Replacement", "String Search", "String Splitting", "Time Window"),
        *("Tuple", "Type Conversion", "URL", "UUID"),
    )
)
"""ClickHouse's categories of functions that compute their result from their arguments."""
_OTHER_FUNCTIONS = frozenset(
    (
        *("MACNumToString", "MACStringToNum", "MACStringToOUI", "bar", "blockNumber", "byteSize"),
        *("caseWithExpression", "countDigits", "currentDatabase", "currentUser"),
        *("defaultValueOfArgumentType", "defaultValueOfTypeName", "finalizeAggregation"),
        *("formatReadableDecimalSize", "formatReadableQuantity", "formatReadableSize"),
        *("formatReadableTimeDelta", "identity", "ignore", "indexHint", "initializeAggregation"),
        *("isConstant", "lowCardinalityIndices", "lowCardinalityKeys", "materialize", "neighbor"),
        *("parseReadableSize", "parseTimeDelta", "rowNumberInAllBlocks", "rowNumberInBlock"),
        *("runningAccumulate", "runningDifference", "runningDifferenceStartingWithFirstValue", "sleep"),
        *("sleepEachRow", "toColumnTypeName", "toTypeName", "transform", "uptime", "version"),
        *("visibleWidth",),
    )
)
"""Of other categories."""

Node = dict[str, Any]


def refused_functions(functions: bytes) -> frozenset[str]:
    """The functions that a query may not call, in lower case, by the engine's answer to FUNCTIONS.

    Names that the engine does not list are of aggregate functions with suffixes (sumIf), or do not exist.
    """
    rows: list[list[str]] = [json.loads(line) for line in functions.splitlines()]
    categories = {name: category for name, _, category in rows}
    return frozenset(
        name.lower()
        for name, alias_to, _ in rows
        if categories.get(alias_to or name) not in _CATEGORIES and (alias_to or name) not in _OTHER_FUNCTIONS
    )


def parsing(sql: str) -> str:
    """The query whose answer is the syntax tree of `sql`, for `check_query`.

    Raises UsageError if it is too long, or has characters that end a text in C or are none in UTF-8.
    """
    if len(sql) > QUERY_MAX:
        raise UsageError(f"the query has {len(sql)} characters", f"shorten it to {QUERY_MAX}")
    if re.search("[\0\ud800-\udfff]", sql):
        raise UsageError("the query has characters that are not text", "correct the query")
    # In hexadecimal nothing of it can end the literal.
    return f"SELECT parseQueryToJSON(unhex('{sql.encode().hex()}')) FORMAT TSVRaw"


def split_format(sql: str, default: str) -> tuple[str, str]:
    """A query without the FORMAT at its end, and that format; the default where it names none."""
    match = _FORMAT.search(sql)
    return (sql[: match.start()], match[1]) if match else (sql, default)


def check_format(form: str) -> None:
    """Raises UsageError for a format that answers cannot have."""
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", f"known are: {', '.join(sorted(FORMATS))}")


def code_and_text(error: Exception) -> tuple[int, str]:
    """ClickHouse's code of an error, 0 if it has none, and what it says, in one line."""
    text = " ".join(str(error).split())
    match = _ERROR.fullmatch(text)
    return (int(match[1]), match[2]) if match else (0, text)


def query_failure(code: int, what: str, limits: QueryLimits) -> UsageError:
    """The error for a query that was executed and failed, by ClickHouse's code and words."""
    if code in _TOO_MUCH:
        return UsageError(
            f"the query {_TOO_MUCH[code].format(limits=limits)}",
            "choose a shorter time, or a table of a coarser resolution",
        )
    return UsageError(f"the query failed: {what}", "correct the query")


def parse_failure(code: int, what: str) -> UsageError:
    """The error for a query that could not be parsed, by ClickHouse's code and words."""
    if code == _NO_TREE:
        return _refused_statement()
    return UsageError(f"the query cannot be understood: {what.partition(_SCOPE)[0]}", "correct the query")


def is_description(sql: str) -> bool:
    """Whether this is a DESCRIBE or SHOW CREATE of a table of flows, which needs no further check."""
    return _DESCRIPTION.fullmatch(sql) is not None


def check_query(tree: str, refused: frozenset[str]) -> None:
    """Does nothing if the query with this syntax tree may be executed; `refused` are as of `refused_functions`.

    Raises UsageError for any other, and says what it may not do.
    """
    try:
        query = statement = json.loads(tree)
        if query.get("type") == "ExplainQuery":
            statement = query.get("query", {})
            # What shall be explained, as in EXPLAIN indexes = 1.
            query.pop("settings", None)
        if statement.get("type") not in _STATEMENTS:
            raise _refused_statement()
        for key, node in _nodes(query):
            _check_node(key, node, refused)
    except RecursionError:
        raise UsageError("the query is nested too deeply", "simplify it") from None


def check_kind(tree: str) -> None:
    """As `check_query`, by the kind of statement alone, for servers: these refuse everything else to readonly=1.

    `tree` is the answer to EXPLAIN AST, which servers of all versions have.
    """
    if tree.split(maxsplit=1)[0] not in _KINDS:
        raise _refused_statement()


def _nodes(value: object, key: str = "") -> Iterator[tuple[str, Node]]:
    """All nodes in a value, each with the key that its parent has it by."""
    if isinstance(value, list):
        for child in value:
            yield from _nodes(child, key)
    elif isinstance(value, dict):
        yield key, value
        for name, child in value.items():
            yield from _nodes(child, name)


def _check_node(key: str, node: Node, refused: frozenset[str]) -> None:
    if "out_file" in node:
        raise _refused("INTO OUTFILE", "redirect the output of nettop")
    if "format_ast" in node:
        raise _refused("FORMAT", "leave it out: nettop is given the format by itself")
    kind, name = node.get("type"), str(node.get("name", ""))
    if kind == "SetQuery":
        raise _refused("SETTINGS", "leave them out")
    if kind is not None and kind not in _NODES:
        raise _refused(f"{kind} in a query", "leave it out")
    if key == "table_function":
        if name.lower() not in _TABLE_FUNCTIONS:
            raise _refused(f"the table function {name}", f"allowed are {', '.join(sorted(_TABLE_FUNCTIONS))}")
    elif kind == "Function":
        _check_function(name, refused)
    elif kind == "ColumnsApplyTransformer":
        _check_function(str(node.get("func_name", "")), refused)
    elif kind in ("Identifier", "TableIdentifier"):
        _check_identifier(node.get("name_parts") or name.split("."), is_table=kind == "TableIdentifier")


def _check_function(name: str, refused: frozenset[str]) -> None:
    if name.lower() in refused:
        raise _refused(f"the function {name}", "allowed are functions that only compute")


def _check_identifier(parts: list[str], *, is_table: bool) -> None:
    """What is not certainly a table, as after IN, may name any but the databases of files and of the engine."""
    if len(parts) < 2:
        return
    database, table = parts[0].lower(), parts[1]
    if database not in _DATABASES if is_table else database == _FILES:
        raise _refused(f"the database {parts[0]}", f"use the tables of {DATABASE} and system")
    if database == _SYSTEM and table not in _SYSTEM_TABLES:
        raise _refused(f"the table system.{table}", f"allowed are {', '.join(sorted(_SYSTEM_TABLES))}")


def _refused(what: str, remedy: str) -> UsageError:
    return UsageError(f"a query may not use {what}", remedy)


def _refused_statement() -> UsageError:
    return _refused("this kind of statement", "use SELECT, SHOW, DESCRIBE or EXPLAIN")
