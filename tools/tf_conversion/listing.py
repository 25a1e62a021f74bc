"""
What the variables of a checkpoint are, what they become, and what is left over; as records, for table and JSON file.
"""

from __future__ import annotations

from typing import Any

from .convert import Plan, detect_kind, make_plan
from .variables import ConversionError, Variables

__all__ = ["list_variables", "table"]

LEFT_OVER = "left over"


def list_variables(
    variables: Variables, *, kind: str | None = None, asr_variables: Variables | None = None, **plan_opts: Any
) -> tuple[list[dict[str, Any]], Plan | None, str | None]:
    """
    :param variables:
    :param kind: None: as it looks
    :param asr_variables: see :func:`make_plan`
    :param plan_opts: for :func:`make_plan`
    :return: a record for each variable and parameter that it becomes (``variable``, ``shape``, ``dtype``, and
        ``parameter``, ``parameter_shape``, ``transform`` or ``reason``); the plan of the conversion, if the kind is
        known; what prevents the conversion, or None
    """
    plan, problem = None, None
    try:
        kind = kind or detect_kind(variables)
        plan = make_plan(kind, variables, asr_variables=asr_variables, check=False, **plan_opts)
        problem = plan.problems[0] if plan.problems else None
    except ConversionError as exc:
        problem = str(exc)
    by_source: dict[str, list[dict[str, Any]]] = {}
    for assignment in plan.assignments if plan else ():
        if plan.variables_of(assignment) is variables and assignment.source in variables:
            by_source.setdefault(variables.names[assignment.source], []).append(
                {
                    "parameter": assignment.target,
                    "parameter_shape": list(plan.parameters[assignment.target]),
                    "transform": assignment.transform.description,
                }
            )
    records = []
    for name, entry in sorted(variables.reader.entries.items()):
        record = {"variable": name, "shape": list(entry.shape), "dtype": entry.dtype}
        if name in by_source:
            records += [{**record, **use} for use in by_source[name]]
        else:
            records.append({**record, "reason": variables.ignored.get(name, LEFT_OVER if plan else None)})
    return records, plan, problem


def table(records: list[dict[str, Any]]) -> str:
    """:return: the records in columns"""
    rows = [("variable", "shape", "becomes", "how")]
    for record in records:
        shape = "x".join(map(str, record["shape"])) or "scalar"
        if "parameter" in record:
            target = "x".join(map(str, record["parameter_shape"]))
            rows.append((record["variable"], shape, f"{record['parameter']} {target}", record["transform"]))
        else:
            rows.append((record["variable"], shape, "-", record["reason"] or ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join((*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3])) for row in rows
    )
