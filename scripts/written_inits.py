"""Writes out the `__init__` of dataclasses, so that it can be compiled: the one that `dataclass` makes is no source.

That of a frozen one, moreover, goes through `object.__setattr__`. Making such objects was a tenth of what a tick does.
"""

import ast


def with_written_inits(source: str) -> str:
    """The source, in which each dataclass has one, and is not frozen, that has plain fields only, no base, and is no base."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base) for node in classes for base in node.bases}
    lines = source.splitlines(keepends=True)
    for node in sorted(classes, key=lambda node: node.lineno, reverse=True):  # so that the numbers of the lines before hold
        options = _options_of(node)
        if options is None or node.bases or node.name in bases:
            continue
        init = _init_of(node, source)
        if init is not None:
            lines.insert(_last_line_of_fields(node), init)
            lines[node.decorator_list[0].lineno - 1] = f"@dataclass({_not_frozen(options)})\n"
    return "".join(lines)


def _options_of(node: ast.ClassDef) -> dict[str, bool] | None:
    """What `@dataclass` is told, where it is the class's only decorator."""
    match node.decorator_list:
        case [ast.Call(ast.Name("dataclass"), [], keywords) as call] if call.lineno == call.end_lineno:
            options = {str(one.arg): ast.literal_eval(one.value) for one in keywords}
            return options if options.keys() <= {"eq", "frozen", "slots"} else None
    return None


def _not_frozen(options: dict[str, bool]) -> str:
    kept = {name: value for name, value in options.items() if name not in {"frozen", "slots"}}  # what is compiled has slots
    if options.get("frozen") and options.get("eq", True):
        kept["unsafe_hash"] = True
    return ", ".join(f"{name}={value}" for name, value in {**kept, "init": False}.items())


def _init_of(node: ast.ClassDef, source: str) -> str | None:
    """None where it does more than to take the fields."""
    fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
    parameters = [_parameter(one, source) for one in fields]
    does_more = any(isinstance(one, ast.FunctionDef) and one.name == "__post_init__" for one in node.body)
    if not fields or does_more or None in parameters:
        return None
    sets = "".join(f"        self.{name} = {name}\n" for name in (ast.unparse(one.target) for one in fields))
    return f"\n    def __init__(self, {', '.join(map(str, parameters))}) -> None:\n{sets}"


def _parameter(field: ast.AnnAssign, source: str) -> str | None:
    """None for what is no field, and for one whose default is made anew each time."""
    default = field.value
    if "ClassVar" in ast.unparse(field.annotation):
        return None
    match default:
        case ast.Call(ast.Name("field"), [], keywords):
            default = {one.arg: one.value for one in keywords}.get("default")
            if default is None:
                return None
    stated = f"{ast.unparse(field.target)}: {ast.get_source_segment(source, field.annotation)}"
    return stated if default is None else f"{stated} = {ast.unparse(default)}"


def _last_line_of_fields(node: ast.ClassDef) -> int:
    last = max(index for index, one in enumerate(node.body) if isinstance(one, ast.AnnAssign))
    match node.body[last + 1 : last + 2]:
        case [ast.Expr(ast.Constant())]:  # the last one's docstring
            last += 1
    return node.body[last].end_lineno or 0
