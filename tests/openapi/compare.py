#!/usr/bin/env python3
"""Compares the OpenAPI document made from our code with upstream's.

    cargo run -q -p tram-api --example openapi | tests/openapi/compare.py - [UPSTREAM]

UPSTREAM is upstream's Swagger 2 file; without it the environment's TRAM_UPSTREAM_OPENAPI is used, and then
upstream.json beside this program, which reduce.py made of it. Every difference in paths, parameters, members, types,
enumerations and failures is printed unless allowed.json names it with a reason. Exit status 1 when one is left, or when an
allowance no longer matches anything; 0 otherwise.

Standard library alone. Schemas are compared by structure, not by name: references are followed on both sides.
"""

import fnmatch
import json
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
METHODS = ("get", "post", "put", "patch", "delete")
FAILURES = ("400", "401", "403", "404", "500", "503")


def load(path):
    if path == "-":
        return json.load(sys.stdin)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def upstream_path(arguments):
    if len(arguments) > 2:
        return arguments[2]
    from_environment = os.environ.get("TRAM_UPSTREAM_OPENAPI")
    if from_environment:
        return from_environment
    return HERE / "upstream.json"


class Schemas:
    """Brings the schemas of one document to one plain form."""

    def __init__(self, document):
        self.document = document

    def resolve(self, schema):
        name = None
        while "$ref" in schema:
            parts = schema["$ref"].lstrip("#/").split("/")
            name = parts[-1]
            schema = self.document
            for part in parts:
                schema = schema[part]
        return schema, name

    def plain(self, schema):
        """(kind, detail, name): kind is object, array, map, string, integer, number, boolean, enum or any."""
        schema, name = self.resolve(schema or {})
        for key in ("oneOf", "anyOf", "allOf"):
            if key in schema:
                # An optional member is written as "null or that".
                others = [part for part in schema[key] if part.get("type") != "null"]
                if len(others) == 1:
                    return self.plain(others[0])
        if "enum" in schema:
            return "enum", [value for value in schema["enum"] if value is not None], name
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), None)
        if kind == "array":
            return "array", schema.get("items", {}), name
        if kind == "object" or "properties" in schema:
            extra = schema.get("additionalProperties")
            if not schema.get("properties") and isinstance(extra, dict) and extra:
                return "map", extra, name
            if not schema.get("properties") and "additionalProperties" in schema:
                return "any", None, name
            return "object", schema.get("properties", {}), name
        if kind is None:
            return "any", None, name
        return kind, schema.get("format"), name


class Comparison:
    def __init__(self, ours, upstream):
        self.ours = Schemas(ours)
        self.upstream = Schemas(upstream)
        self.found = set()
        self.seen = set()

    def note(self, *words):
        self.found.add(" ".join(words))

    def schemas(self, where, ours, upstream):
        kind, detail, name = self.ours.plain(ours)
        wanted, wanted_detail, wanted_name = self.upstream.plain(upstream)
        # A named message is compared once, under its own name.
        if wanted_name:
            where = wanted_name
            key = (name, wanted_name)
            if key in self.seen:
                return
            self.seen.add(key)
        if wanted == "any" or (wanted == "object" and not wanted_detail):
            if kind not in ("any", "object", "map"):
                self.note("type", where, kind, "instead of", wanted)
            return
        if kind != wanted:
            self.note("type", where, kind, "instead of", wanted)
        elif kind == "enum":
            for value in sorted(set(wanted_detail) - set(detail)):
                self.note("enum", where, "lacks", value)
            for value in sorted(set(detail) - set(wanted_detail)):
                self.note("enum", where, "adds", value)
        elif kind in ("array", "map"):
            self.schemas(where + "[]", detail, wanted_detail)
        elif kind == "object":
            for member in sorted(set(wanted_detail) - set(detail)):
                self.note("member", f"{where}.{member}", "lacks")
            for member in sorted(set(detail) - set(wanted_detail)):
                self.note("member", f"{where}.{member}", "adds")
            for member in sorted(set(detail) & set(wanted_detail)):
                self.schemas(f"{where}.{member}", detail[member], wanted_detail[member])
        elif (detail == "date-time") != (wanted_detail == "date-time"):
            self.note("format", where, str(detail), "instead of", str(wanted_detail))

    def operations(self):
        ours = self.ours.document["paths"]
        upstream = self.upstream.document["paths"]
        for path in sorted(set(ours) | set(upstream)):
            for method in METHODS:
                label = f"{method.upper()} {path}"
                mine = ours.get(path, {}).get(method)
                theirs = upstream.get(path, {}).get(method)
                if mine and theirs:
                    self.operation(label, mine, theirs)
                elif mine:
                    self.note("operation", label, "adds")
                elif theirs:
                    self.note("operation", label, "lacks")

    def operation(self, label, mine, theirs):
        if mine.get("operationId") != theirs.get("operationId"):
            self.note("name", label, str(mine.get("operationId")), "instead of", str(theirs.get("operationId")))
        if "200" not in mine["responses"]:
            # Two refusals: not yet, and never.
            refusal = "501" if "501" in mine["responses"] else "404"
            self.note("operation", label, "answers", refusal, "only")
            return
        for status in FAILURES:
            if status in theirs["responses"] and status not in mine["responses"]:
                self.note("failure", label, status, "lacks")
            elif status in theirs["responses"]:
                failure = mine["responses"][status]["content"]["application/json"]["schema"]
                self.schemas(f"{label} {status}", failure, theirs["responses"][status]["schema"])
        self.parameters(label, mine, theirs)
        body = mine.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        wanted = next((one["schema"] for one in theirs.get("parameters", []) if one["in"] == "body"), None)
        if body is not None and wanted is None:
            self.note("body", label, "adds")
        elif wanted is not None and body is None:
            kind, detail, _ = self.upstream.plain(wanted)
            if not (kind in ("object", "any") and not detail):
                self.note("body", label, "lacks")
        elif wanted is not None:
            self.schemas(f"{label} body", body, wanted)
        reply = mine["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
        wanted = theirs["responses"]["200"].get("schema")
        if reply is None and wanted is not None:
            self.note("reply", label, "is a stream")
        elif reply is not None and wanted is not None:
            self.schemas(f"{label} reply", reply, wanted)

    def parameters(self, label, mine, theirs):
        def form(schemas, schema):
            """Everything is text in a URL; lists, truth values and enumerations are read in their own way."""
            kind, detail, _ = schemas.plain(schema)
            if kind == "array":
                inner, members = form(schemas, detail)
                return "array" if inner == "text" else f"array of {inner}", members
            if kind == "enum":
                return kind, set(detail)
            return (kind if kind == "boolean" else "text"), set()

        def named(operation, schemas):
            return {
                (parameter["in"], parameter["name"]): form(schemas, parameter.get("schema", parameter))
                for parameter in operation.get("parameters", [])
                if parameter["in"] in ("query", "path")
            }

        mine = named(mine, self.ours)
        theirs = named(theirs, self.upstream)
        for place, name in sorted(set(theirs) - set(mine)):
            self.note("parameter", label, name, "lacks")
        for place, name in sorted(set(mine) - set(theirs)):
            self.note("parameter", label, name, "adds")
        for key in sorted(set(mine) & set(theirs)):
            (kind, members), (wanted, wanted_members) = mine[key], theirs[key]
            if kind != wanted:
                self.note("parameter", label, key[1], kind, "instead of", wanted)
            for value in sorted(wanted_members - members if kind == wanted else ()):
                self.note("parameter", label, key[1], "lacks", value)
            for value in sorted(members - wanted_members if kind == wanted else ()):
                self.note("parameter", label, key[1], "adds", value)


def main(arguments):
    if len(arguments) < 2:
        sys.exit(__doc__)
    comparison = Comparison(load(arguments[1]), load(upstream_path(arguments)))
    comparison.operations()
    allowances = load(HERE / "allowed.json")
    for allowance in allowances:
        if not allowance.get("reason"):
            sys.exit(f"allowed.json: no reason for {allowance['differences']}")
    patterns = [(pattern, allowance) for allowance in allowances for pattern in allowance["differences"]]

    def matches(difference, pattern):
        # Brackets are part of names here, not of patterns.
        return fnmatch.fnmatchcase(difference, pattern.replace("[", "[[]"))

    left = sorted(
        difference
        for difference in comparison.found
        if not any(matches(difference, pattern) for pattern, _ in patterns)
    )
    idle = [
        pattern
        for pattern, _ in patterns
        if not any(matches(difference, pattern) for difference in comparison.found)
    ]
    for difference in left:
        print(difference)
    for pattern in idle:
        print(f"allowed.json: nothing differs any more as `{pattern}` says: remove it")
    print(
        f"{len(comparison.found)} differences, {len(comparison.found) - len(left)} of them allowed",
        file=sys.stderr,
    )
    return 1 if left or idle else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
