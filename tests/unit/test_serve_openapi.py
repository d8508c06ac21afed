# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI description: valid, complete, generated from the declarations, and true of the answers."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi.definitions import OPENAPI_31
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.query.units import unit_of
from nettop.serve.api.openapi import description
from nettop.serve.api.parameters import (
    FILTER,
    FORMATS,
    MAX_FILTER_CHARS,
    MAX_ROWS,
    MAX_STREAMED_ROWS,
    PARAMETERS,
    STREAMED_ROWS,
    default_columns,
)
from nettop.serve.api.tables import AGE, MAX_STREAMS, MAX_VIEWS, stream_routes, table_routes
from nettop.serve.api.traffic import REALTIME, SUMMARY, InterfaceTraffic
from nettop.snapshots import find_table, view_name
from nettop.snapshots.cpu import LENS as CPU
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Kind
from tests.unit.serving import LENSES, example_host, make_app, table

VIEWS = [view_name(lens, other) for lens in LENSES for other in lens.tables]
DESCRIPTION = description(LENSES, "1.2.3")
OTHERS = {"/api/v1/stream", "/health", "/metrics", REALTIME, SUMMARY}
HOST = example_host()


def described_app() -> Any:
    """Return the tables of an example, the stream of a server that ends, and the description."""
    ending = asyncio.Event()
    ending.set()

    async def describe(request: Request) -> Response:
        return JSONResponse(DESCRIPTION)

    routes = [
        Route("/api/openapi.json", describe),
        *stream_routes(HOST, SimpleNamespace(ending=ending)),
        *table_routes(HOST),
    ]
    return make_app(routes)


def operations(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the GET operations, by path."""
    return {path: item["get"] for path, item in described["paths"].items()}


def resolved(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Resolve a reference."""
    while "$ref" in schema:
        value: Any = described
        for step in schema["$ref"].removeprefix("#/").split("/"):
            value = value[step]
        schema = value
    return schema


def test_the_description_is_valid() -> None:
    """The description is valid OpenAPI 3.1, with valid JSON Schemas."""
    jsonschema.Draft202012Validator(OPENAPI_31).validate(DESCRIPTION)
    for schema in DESCRIPTION["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert DESCRIPTION["info"]["version"] == "1.2.3"


def test_it_has_a_path_for_each_table_that_is_served() -> None:
    """Each served table has a path with its own ID and its lens's tag; tables of other lenses have none."""
    every = operations(DESCRIPTION)
    assert set(every) == {f"/api/v1/{view}" for view in VIEWS} | OTHERS
    assert len({operation["operationId"] for operation in every.values()}) == len(every)
    few = operations(description((CPU, SELF), "1", without=(SUMMARY,)))
    of_cpu = {f"/api/v1/{view_name(CPU, other)}" for other in CPU.tables}
    assert set(few) == of_cpu | {"/api/v1/self"} | OTHERS - {SUMMARY}


def test_the_limits_are_those_of_the_server() -> None:
    """The numbers in the description are those that the server checks."""
    shared = DESCRIPTION["components"]["parameters"]
    stream = DESCRIPTION["paths"]["/api/v1/stream"]["get"]
    assert shared["limit"]["schema"]["maximum"] == MAX_ROWS
    assert shared[FILTER]["schema"]["items"]["maxLength"] == MAX_FILTER_CHARS
    assert shared["format"]["schema"]["enum"] == list(FORMATS)
    assert stream["parameters"][0]["schema"]["maxItems"] == MAX_VIEWS
    limits = f"limit is {STREAMED_ROWS} rows per table, the maximum {MAX_STREAMED_ROWS}. At most {MAX_STREAMS} streams"
    assert limits in " ".join(stream["description"].split())


def test_the_numbers_of_traffic_are_described() -> None:
    """The description has each number of the answers about traffic."""
    described = operations(DESCRIPTION)
    of_host = InterfaceTraffic()
    for path, answer in ((REALTIME, of_host.realtime(1.0)), (SUMMARY, of_host.summary(1.0))):
        schema = described[path]["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(schema["required"]) == set(schema["properties"]) == {*answer, AGE}


@pytest.mark.parametrize("view", VIEWS)
def test_the_parameters_are_those_that_are_read(view: str) -> None:
    """The parameters are those accepted, with their columns to sort by and to choose, and the defaults."""
    _, declared = find_table(view)
    operation = DESCRIPTION["paths"][f"/api/v1/{view}"]["get"]
    given = {
        declared_parameter["name"]: declared_parameter
        for declared_parameter in (resolved(DESCRIPTION, parameter) for parameter in operation["parameters"])
    }
    assert set(given) == set(PARAMETERS)
    assert {name.removeprefix("-") for name in given["sort"]["schema"]["enum"]} == set(declared.sortable)
    assert given["sort"]["schema"]["default"] == declared.sort
    assert given["columns"]["schema"]["items"]["enum"] == list(declared.names)
    assert given["columns"]["schema"]["default"] == list(default_columns(declared))


@pytest.mark.parametrize("view", VIEWS)
def test_each_column_is_described(view: str) -> None:
    """Each column may be null, and has its meaning and unit."""
    _, declared = find_table(view)
    columns = DESCRIPTION["components"]["schemas"][view]["properties"]
    assert list(columns) == list(declared.names)
    for name, schema in columns.items():
        field = declared.by_name.get(name)
        assert "null" in schema["type"]
        assert (field or declared.by_name[name.removesuffix("_per_s")]).help in schema["description"]
        assert unit_of(declared, name) in schema["description"]
        if field is not None and field.kind is Kind.ENUM:
            assert set(schema["enum"]) == {*field.labels.values(), None}


@pytest.mark.parametrize("query", ["", "deltas=true&all=true"])
@pytest.mark.parametrize("view", VIEWS)
async def test_every_column_is_what_is_described(view: str, query: str) -> None:
    """All columns conform, as totals and as differences, and values of another type would not."""
    _, declared = find_table(view)
    document = await table(HOST, view, f"columns={','.join(declared.names)}&{query}".rstrip("&"))
    answer = DESCRIPTION["paths"][f"/api/v1/{view}"]["get"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(DESCRIPTION | {"allOf": [schema]}).validate(document)
    first = document["rows"][0]
    row = jsonschema.Draft202012Validator(DESCRIPTION["components"]["schemas"][view])
    assert row.is_valid(first)
    assert not any(row.is_valid({name: {"not": "a value"}}) for name in first)
    assert not row.is_valid({"no such column": 1})


# Tables are described by the same code: one of each sort is enough.
schema = schemathesis.openapi.from_asgi("/api/openapi.json", described_app()).include(
    path_regex=r"/(connections|connections\.events|latency|self|stream)$"
)
ABOUT_LANGUAGE = {"filter", "view"}
"""Parameters that have a language of their own, of which a schema knows nothing."""


@schema.parametrize()
@settings(
    max_examples=8,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_answers_conform(case: schemathesis.Case) -> None:
    """Requests that the description allows get the described answer; others are refused."""
    answer = case.call()
    refused = answer.status_code == 400 and json.loads(answer.content).get("parameter") in ABOUT_LANGUAGE
    excluded = [CHECKS.get_one("positive_data_acceptance")] if refused else []
    case.validate_response(answer, excluded_checks=excluded)
