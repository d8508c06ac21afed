# SPDX-License-Identifier: Apache-2.0
"""Limits on user queries in this process: they may read the tables of flows, but nothing of the host or the network.

The engine itself refuses writes, other settings and most table functions to a session with readonly=1. It still allows
what a program on a terminal may do: `file('/etc/shadow')`, INTO OUTFILE, a path as a table name, KILL, and functions
that call out. So the engine parses the query, and this module checks its syntax tree against allowlists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nettop.collector.store.schema import DATABASE
from nettop.errors import SourceFailed, UsageError


def _names(text: str, separator: str | None = None) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(separator))


QUERY_MAX = 65_536
"""Maximum length of a query, in characters."""
FORMATS = _names("""
    Arrow ArrowStream CSV CSVWithNames JSON JSONColumns JSONCompact JSONCompactEachRow JSONEachRow Markdown
    Native Null Parquet PrettyCompactMonoBlock RowBinary RowBinaryWithNamesAndTypes TSV TSVWithNames
    TabSeparated TabSeparatedWithNames Vertical
""")
"""Output formats that write only to the answer."""

_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """Resource limits of a query. `answer_bytes` counts the answer before formatting."""

    seconds: int = 60
    memory_bytes: int = 2 << 30
    answer_bytes: int = 256 << 20

    def settings(self) -> dict[str, int]:
        """Return ClickHouse's settings for a read-only query."""
        return {
            "readonly": 1,
            "max_execution_time": self.seconds,
            "max_memory_usage": self.memory_bytes,
            "max_result_bytes": self.answer_bytes,
        }


_LIMIT_ERRORS = {
    159: "took longer than {limits.seconds} s",
    241: "needed more than {limits.memory_bytes} bytes of memory",
    396: "returned more than {limits.answer_bytes} bytes",
}
"""Exceeded limits by ClickHouse's codes TIMEOUT_EXCEEDED, MEMORY_LIMIT_EXCEEDED and TOO_MANY_ROWS_OR_BYTES."""

_DAMAGE = frozenset((33, 40, 74, 76, 107, 226, 228, 246, 271))
"""ClickHouse's codes for files that are damaged, missing or unreadable, from CANNOT_READ_ALL_DATA to
CANNOT_DECOMPRESS. If they concern a part, the query is not to blame.
"""
_PART = re.compile(r"while reading from part (\S+?)/? in table")
_ERROR = re.compile(r".*?Code: (\d+)\. DB::Exception: (.*?)(?: \([A-Z_]+\))?(?: \((?:version|for url) .*)?")

FUNCTIONS = (
    "SELECT name, alias_to, categories FROM system.functions WHERE NOT is_aggregate FORMAT JSONCompactEachRow"
)
"""The query whose answer `refused_functions` reads."""

_STATEMENTS = frozenset(("SelectWithUnionQuery", "ShowTablesQuery", "ShowColumnsQuery"))
_KINDS = _names("""
    DescribeQuery Explain SelectIntersectExceptQuery SelectWithUnionQuery ShowColumns ShowCreateTableQuery
    ShowTables
""")
"""Kinds of statements that may be executed, as named by EXPLAIN AST."""
_NODES = _STATEMENTS | _names("""
    ArrayJoin Asterisk ColumnsApplyTransformer ColumnsExceptTransformer ColumnsListMatcher ColumnsRegexpMatcher
    ColumnsReplaceTransformer ColumnsReplaceTransformerReplacement ColumnsTransformerList ExplainQuery
    ExpressionList Function Identifier InterpolateElement Literal OrderByElement QualifiedAsterisk
    QualifiedColumnsListMatcher QualifiedColumnsRegexpMatcher SampleRatio SelectIntersectExceptQuery SelectQuery
    Subquery TableExpression TableIdentifier TableJoin TablesInSelectQuery TablesInSelectQueryElement
    WindowDefinition WindowListElement WithElement
""")
"""Syntax tree nodes allowed in a query, by the engine's names."""
_DESCRIPTION = re.compile(
    rf"\s*(?:DESCRIBE|DESC|SHOW\s+CREATE)\s+(?:TABLE\s+)?(?:{DATABASE}\.)?\w+\s*;?\s*",
    re.IGNORECASE | re.ASCII,
)
"""Statements without a JSON syntax tree, simple enough to recognize by their text."""
_NO_TREE = 36
"""ClickHouse's code BAD_ARGUMENTS, raised for statements without a JSON syntax tree."""
_SCOPE = ": In scope SELECT parseQueryToJSON"
"""Text that ClickHouse appends to errors in the query of `syntax_tree_query`."""
_SYSTEM = "system"
_DATABASES = frozenset((DATABASE, _SYSTEM, "information_schema"))
_SYSTEM_TABLES = _names("""
    build_options columns data_skipping_indices data_type_families databases formats functions keywords merges
    numbers numbers_mt one parts parts_columns projections settings table_engines table_functions tables
    time_zones zeros zeros_mt
""")
"""System tables that reveal nothing about the host, the process, or other users' queries."""
_FILES = "default"
"""chDB's database in which a file path is a table name."""
_TABLE_FUNCTIONS = _names("""
    generate_series generateseries null numbers numbers_mt values view zeros zeros_mt
""")
_CATEGORIES = _names(
    """
    Arithmetic, Arrays, Bit, Bitmap, Comparison, Conditional, Dates and Times, Distance, Encoding, Encryption,
    Financial, Geo, Geo Polygon, Hash, IP Address, JSON, Logical, Map, Mathematical, Null, NumericIndexedVector,
    Random Number, Rounding, String, String Replacement, String Search, String Splitting, Time Window, Tuple,
    Type Conversion, URL, UUID
""",
    ",",
)
"""ClickHouse's categories of functions that only compute from their arguments."""
_OTHER_FUNCTIONS = _names("""
    MACNumToString MACStringToNum MACStringToOUI bar blockNumber byteSize caseWithExpression countDigits
    currentDatabase currentUser defaultValueOfArgumentType defaultValueOfTypeName finalizeAggregation
    formatReadableDecimalSize formatReadableQuantity formatReadableSize formatReadableTimeDelta identity ignore
    indexHint initializeAggregation isConstant lowCardinalityIndices lowCardinalityKeys materialize neighbor
    parseReadableSize parseTimeDelta rowNumberInAllBlocks rowNumberInBlock runningAccumulate runningDifference
    runningDifferenceStartingWithFirstValue sleep sleepEachRow toColumnTypeName toTypeName transform uptime
    version visibleWidth
""")
"""Allowed functions of other categories."""

Node = dict[str, Any]


def refused_functions(functions: bytes) -> frozenset[str]:
    """Return the functions a query may not call, in lower case, given the engine's answer to FUNCTIONS.

    Names the engine does not list are aggregate functions with suffixes (sumIf), or do not exist.
    """
    rows: list[list[str]] = [json.loads(line) for line in functions.splitlines()]
    categories = {name: category for name, _, category in rows}
    return frozenset(
        name.lower()
        for name, alias_to, _ in rows
        if categories.get(alias_to or name) not in _CATEGORIES and (alias_to or name) not in _OTHER_FUNCTIONS
    )


def syntax_tree_query(sql: str) -> str:
    """Return the query that yields the syntax tree of `sql`, for `check_query`.

    Raise UsageError if it is too long, or contains NUL characters or lone surrogates.
    """
    if len(sql) > QUERY_MAX:
        raise UsageError(f"the query has {len(sql)} characters", f"shorten it to at most {QUERY_MAX}")
    if re.search("[\0\ud800-\udfff]", sql):
        raise UsageError("the query contains invalid characters", "remove NUL characters and lone surrogates")
    # In hexadecimal, nothing in it can terminate the literal.
    return f"SELECT parseQueryToJSON(unhex('{sql.encode().hex()}')) FORMAT TSVRaw"


def split_format(sql: str, default: str) -> tuple[str, str]:
    """Split a trailing FORMAT off a query; return the query, and that format or the default."""
    match = _FORMAT.search(sql)
    return (sql[: match.start()], match[1]) if match else (sql, default)


def check_format(form: str) -> None:
    """Raise UsageError for an unsupported output format."""
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", f"use one of: {', '.join(sorted(FORMATS))}")


def code_and_text(error: Exception) -> tuple[int, str]:
    """Return ClickHouse's error code, 0 if there is none, and its message on one line."""
    text = " ".join(str(error).split())
    match = _ERROR.fullmatch(text)
    return (int(match[1]), match[2]) if match else (0, text)


def query_failure(code: int, what: str, limits: QueryLimits) -> UsageError | SourceFailed:
    """Return the error for a query that failed when executed, given ClickHouse's code and message: SourceFailed if
    stored rows are damaged.
    """
    if code in _DAMAGE and (part := _PART.search(what)):
        return SourceFailed(
            f"the stored flows in {part[1]} are damaged: {what.partition(': ')[0]}",
            "stop what stores there, restore that directory from a copy or move it away, and start it again",
        )
    if code in _LIMIT_ERRORS:
        return UsageError(
            f"the query {_LIMIT_ERRORS[code].format(limits=limits)}",
            "query a shorter time range, or a table with coarser resolution",
        )
    return UsageError(f"the query failed: {what}", "correct the query")


def parse_failure(code: int, what: str) -> UsageError:
    """Return the error for a query that could not be parsed, given ClickHouse's code and message."""
    if code == _NO_TREE:
        return _refused_statement()
    return UsageError(f"the query cannot be parsed: {what.partition(_SCOPE)[0]}", "correct the query")


def is_description(sql: str) -> bool:
    """Return whether this is a DESCRIBE or SHOW CREATE of a table of flows, which needs no further check."""
    return _DESCRIPTION.fullmatch(sql) is not None


def check_query(tree: str, refused: frozenset[str]) -> None:
    """Raise UsageError unless the query with this syntax tree may be executed; the error says what is not allowed.

    `refused` is the result of `refused_functions`.
    """
    try:
        query = statement = json.loads(tree)
        if query.get("type") == "ExplainQuery":
            statement = query.get("query", {})
            # The settings of EXPLAIN itself, as in EXPLAIN indexes = 1.
            query.pop("settings", None)
        if statement.get("type") not in _STATEMENTS:
            raise _refused_statement()
        for key, node in _nodes(query):
            _check_node(key, node, refused)
    except RecursionError:
        raise UsageError("the query is nested too deeply", "simplify it") from None


def check_kind(tree: str) -> None:
    """Check only the kind of statement, for servers: they refuse everything else to readonly=1.

    `tree` is the answer to EXPLAIN AST, which all server versions support.
    """
    if tree.split(maxsplit=1)[0] not in _KINDS:
        raise _refused_statement()


def _nodes(value: object, key: str = "") -> Iterator[tuple[str, Node]]:
    """Yield all nodes in a value, each with its key in the parent."""
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
        raise _refused("FORMAT", "put it at the end of the query, or leave it out")
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
    """Check an identifier. One that may not be a table, as after IN, is checked for files and system tables only."""
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
