"""The package's own source, compiled with a switching point before every shared access.

The syntax tree of each module is changed so that a call of the scheduler stands
directly before each step that another thread could see or disturb: a load, store or
deletion of an attribute that changes after its object was made, a subscript, a
method of a list, deque, dict or set, an iterator's start, a test for emptiness. The
steps themselves are the package's. Two of them never share a point, also where one
line has several, and `x.a += 1` is a load and a store. The interpreter's version
plays no part, so a schedule can be replayed on any other.

`threading`, `_thread` and the like are replaced where the modules import them, by
what the scheduler controls.

Not instrumented: `_PerThread`, whose entries are only ever touched by the thread
that they are for.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

#: Methods of containers that are one step in C. The value says whether it changes them.
METHODS = {
    **dict.fromkeys(
        ["append", "appendleft", "add", "clear", "difference_update", "discard", "extend",
         "insert", "pop", "popitem", "popleft", "remove", "setdefault", "update"],
        True,
    ),
    **dict.fromkeys(["copy", "get", "items", "keys", "values"], False),
}  # fmt: skip
#: Functions that look through their argument in one step.
LOOKING = {"all", "any", "len", "list", "sorted", "sum", "tuple", "set", "dict", "next"}
#: Functions that look through their last argument step by step.
LAZY = {"filter", "iter", "reversed"}
#: Functions that take an attribute's name.
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}

#: Iterators that take out of a container, and its attribute beside theirs.
TAKING = {"_free_slots": "free", "_next_resumer": "resumers", "spare": "parked"}

UNTOUCHED_CLASSES = {"_PerThread"}
#: What these store changes in a forked child only, where there is one thread.
FORK = {"_attach", "_drop_if_lost", "_forget_all", "_lose", "_lose_all", "forget", "lose"}


class Site(NamedTuple):
    """A place in the source with a switching point."""

    file: str
    line: int
    text: str
    #: The attribute, None for what a container holds.
    name: str | None
    writes: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.text}"


def changing_attributes(trees: Mapping[str, ast.Module]) -> set[str]:
    """The names of attributes that are stored or deleted after their object was made."""
    names: set[str] = set()

    def look(node: ast.AST, own: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                if child.name in FORK:
                    continue
                first = child.args.posonlyargs + child.args.args
                look(child, first[0].arg if child.name == "__init__" and first else "")
                continue
            if isinstance(child, ast.Attribute) and not isinstance(child.ctx, ast.Load):
                if not (isinstance(child.value, ast.Name) and child.value.id == own):
                    names.add(child.attr)
            elif isinstance(child, ast.Call) and _is_dict_of_instance(
                getattr(child.func, "value", None)
            ):
                names.add(ast.literal_eval(child.args[0]))
            elif isinstance(child, ast.Subscript) and _is_dict_of_instance(child.value):
                names.add(ast.literal_eval(child.slice))
            look(child, own)

    for tree in trees.values():
        look(tree, "")
    return names


def _is_dict_of_instance(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "__dict__"


class _Instrument(ast.NodeTransformer):
    def __init__(self, file: str, changing: set[str], sites: list[Site]) -> None:
        self._file = file
        self._changing = changing
        self._sites = sites
        self._depth = 0

    def _site(self, node: ast.expr, name: str | None, writes: bool) -> ast.expr:
        text = ast.unparse(node)
        if len(text) > 60:
            text = text[:57] + "..."
        self._sites.append(Site(self._file, node.lineno, text, name, writes))
        return ast.Constant(len(self._sites) - 1)

    def _call(self, helper: str, node: ast.AST, *args: ast.expr) -> ast.Call:
        call = ast.Call(ast.Name(f"__{helper}__", ast.Load()), [*args], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    # What runs when the module is imported is left alone.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._depth += 1
        node.body = [line for old in node.body for line in self._lines(old)]
        self._depth -= 1
        return node

    def _lines(self, statement: ast.stmt) -> list[ast.stmt]:
        new: ast.stmt | list[ast.stmt] = self.visit(statement)
        return new if isinstance(new, list) else [new]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if node.name not in UNTOUCHED_CLASSES:
            node.body = [line for old in node.body for line in self._lines(old)]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self._depth += 1
        node.body = self.visit(node.body)
        self._depth -= 1
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.target = self.visit(node.target)
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    # Attributes.

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        writes = not isinstance(node.ctx, ast.Load)
        if self._depth == 0 or (node.attr not in self._changing and node.attr != "__dict__"):
            self.generic_visit(node)
            return node
        site = self._site(node, node.attr, writes)
        self.generic_visit(node)
        helper = "instance_dict" if node.attr == "__dict__" else "attribute"
        node.value = self._call(helper, node, node.value, site)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        target = node.target
        if self._depth == 0 or isinstance(target, ast.Name):
            self.generic_visit(node)
            return node
        assert isinstance(target, ast.Attribute), "not foreseen: augmented subscripts"
        holder = ast.Name("__holder", ast.Store())
        load = ast.Attribute(ast.Name("__holder", ast.Load()), target.attr, ast.Load())
        store = ast.Attribute(ast.Name("__holder", ast.Load()), target.attr, ast.Store())
        lines: list[ast.stmt] = [
            ast.Assign([holder], self.visit(target.value)),
            ast.Assign([store], ast.BinOp(load, node.op, node.value)),
        ]
        for line in lines:
            ast.fix_missing_locations(ast.copy_location(line, node))
        ast.copy_location(load, node)
        ast.copy_location(store, node)
        return [lines[0], self.visit(lines[1])]

    # Subscripts.

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if self._depth == 0:
            return node
        if not isinstance(node.ctx, ast.Load):
            # One of several targets: no point may come between holder and index.
            assert isinstance(node.slice, (ast.Constant, ast.Name)), ast.unparse(node)
            site = self._site(node, None, True)
            node.value = self._call("container", node, self.visit(node.value), site)
            return node
        site = self._site(node, None, False)
        self.generic_visit(node)
        return self._call("get_item", node, node.value, _index(node.slice), site)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        target = node.targets[0]
        if self._depth == 0 or not isinstance(target, ast.Subscript):
            self.generic_visit(node)
            return node
        assert len(node.targets) == 1
        site = self._site(target, None, True)
        value, holder, index = (
            self.visit(part) for part in (node.value, target.value, _index(target.slice))
        )
        call = self._call("set_item", node, value, holder, index, site)
        return ast.copy_location(ast.Expr(call), node)

    def visit_Delete(self, node: ast.Delete) -> Any:
        lines: list[ast.stmt] = []
        for target in node.targets:
            if isinstance(target, ast.Subscript) and self._depth:
                site = self._site(target, None, True)
                holder, index = self.visit(target.value), self.visit(_index(target.slice))
                line: ast.stmt = ast.Expr(self._call("delete_item", node, holder, index, site))
            else:
                line = ast.Delete([self.visit(target)])
            lines.append(ast.copy_location(line, node))
        return lines

    # Containers.

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        if isinstance(function, ast.Name) and function.id == "map" and self._depth:
            return self._mapped(node)
        name: str | None = None
        writes = False
        if isinstance(function, ast.Attribute) and function.attr in METHODS:
            writes = METHODS[function.attr]
        elif isinstance(function, ast.Name) and function.id in LOOKING | LAZY and node.args:
            pass
        elif isinstance(function, ast.Name) and function.id in BY_NAME:
            key = node.args[1]
            assert isinstance(key, ast.Constant), "not foreseen: a name that is computed"
            name = str(key.value)
            writes = function.id in ("setattr", "delattr")
        else:
            self.generic_visit(node)
            return node
        if self._depth == 0:
            return node
        site = self._site(node, name, writes)
        self.generic_visit(node)
        if isinstance(function, ast.Attribute):
            helper = "method"
        elif name:
            helper = "by_name"
        else:
            helper = "lazily" if function.id in LAZY else "look"
        call = self._call(helper, node, site, node.func, *node.args)
        call.keywords = node.keywords
        return call

    def _mapped(self, node: ast.Call) -> ast.AST:
        """`map`, which is used to have one step and the note of it in one call in C."""
        function, first = node.args[0], node.args[1]
        if not isinstance(first, ast.Tuple):
            self.generic_visit(node)
            return node
        if isinstance(function, ast.Attribute):
            if function.attr in METHODS:
                site = self._site(node, None, METHODS[function.attr])
                function.value = self._call("container", node, self.visit(function.value), site)
            return node
        if not isinstance(function, ast.Name):
            return node
        if function.id in BY_NAME:
            key = ast.literal_eval(node.args[2])[0]
            site = self._site(node, key, True)
            first.elts[0] = self._call("attribute", node, self.visit(first.elts[0]), site)
        elif function.id in ("_first", "_last"):
            site = self._site(node, None, True)
            first.elts[0] = self._call("container", node, self.visit(first.elts[0]), site)
        return node

    def _taken_from(self, node: ast.expr) -> ast.expr:
        """What a `for` goes over; a point before the step, if that takes something."""
        if not (isinstance(node, ast.Attribute) and node.attr in TAKING):
            return self._gone_over(node)
        holder = ast.Attribute(node.value, TAKING[node.attr], ast.Load())
        ast.fix_missing_locations(ast.copy_location(holder, node))
        call = self._call("container", node, holder, self._site(node, None, True))
        both = ast.Tuple([call, node], ast.Load())
        taken = ast.Subscript(both, ast.Constant(1), ast.Load())
        return ast.fix_missing_locations(ast.copy_location(taken, node))

    def _gone_over(self, node: ast.expr) -> ast.expr:
        """`node`, with a point before each step of what goes over it."""
        if self._depth == 0 or isinstance(node, ast.Call):
            return self.visit(node)  # type: ignore[no-any-return]
        site = self._site(node, None, False)
        return self._call("each", node, self.visit(node), site)

    def _looked_at(self, node: ast.expr, writes: bool = False) -> ast.expr:
        """`node`, with a point before what comes next looks into it."""
        if self._depth == 0 or isinstance(
            node,
            (
                ast.BoolOp,
                ast.Call,
                ast.Compare,
                ast.Constant,
                ast.GeneratorExp,
                ast.List,
                ast.Tuple,
            ),
        ):
            return self.visit(node)  # type: ignore[no-any-return]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.visit(node)  # type: ignore[no-any-return]
        site = self._site(node, None, writes)
        return self._call("container", node, self.visit(node), site)

    def _blocks(self, node: ast.If | ast.While | ast.For) -> None:
        for part in node.body, node.orelse:
            part[:] = [line for old in part for line in self._lines(old)]

    def _tested(self, node: ast.If | ast.While) -> ast.AST:
        node.test = self._looked_at(node.test)
        self._blocks(node)
        return node

    visit_If = visit_While = _tested

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        node.test = self._looked_at(node.test)
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        # The last one is not looked at here.
        *first, last = node.values
        node.values = [*map(self._looked_at, first), self._looked_at(last)]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            node.operand = self._looked_at(node.operand)
        else:
            self.generic_visit(node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        node.left = self.visit(node.left)
        node.comparators = [
            self._looked_at(value) if isinstance(op, (ast.In, ast.NotIn)) else self.visit(value)
            for op, value in zip(node.ops, node.comparators, strict=True)
        ]
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        node.iter = self._taken_from(node.iter)
        node.target = self.visit(node.target)
        self._blocks(node)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.iter = self._gone_over(node.iter)
        node.ifs = [self._looked_at(test) for test in node.ifs]
        return node


def _index(node: ast.expr) -> ast.expr:
    if not isinstance(node, ast.Slice):
        return node
    bounds = [bound or ast.Constant(None) for bound in (node.lower, node.upper, node.step)]
    call = ast.Call(ast.Name("slice", ast.Load()), [*bounds], [])
    return ast.fix_missing_locations(ast.copy_location(call, node))


def instrument(sources: Mapping[str, str]) -> tuple[dict[str, types.CodeType], list[Site]]:
    """Compile modules with points; the code by name, and the places of the points."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    changing = changing_attributes(trees)
    sites: list[Site] = []
    code: dict[str, types.CodeType] = {}
    for name, tree in trees.items():
        file = name + ".py"
        tree = _Instrument(file, changing, sites).visit(tree)
        ast.fix_missing_locations(tree)
        code[name] = compile(tree, file, "exec", dont_inherit=True)
    return code, sites


def load(
    name: str,
    sources: Mapping[str, str],
    helpers: Mapping[str, Callable[..., Any]],
    replaced: Mapping[str, object],
) -> tuple[dict[str, types.ModuleType], list[Site]]:
    """Import `sources` as the modules of a package `name`, dependencies first.

    `helpers` are what the points call, `replaced` the modules that they get when they
    import those names. The package is not entered into `sys.modules` for longer than
    this takes.
    """
    code, sites = instrument(sources)

    def import_(module: str, *args: Any) -> Any:
        level = args[3] if len(args) > 3 else 0
        if level == 0 and module in replaced:
            return replaced[module]
        return builtins.__import__(module, *args)

    names = {
        **vars(builtins),
        **{f"__{helper}__": function for helper, function in helpers.items()},
        "__import__": import_,
    }
    package = types.ModuleType(name)
    package.__path__ = []
    modules = {"__init__": package}
    try:
        sys.modules[name] = package
        for each in code:
            if each == "__init__":
                continue
            module = types.ModuleType(f"{name}.{each}")
            module.__package__ = name
            module.__dict__["__builtins__"] = names
            sys.modules[f"{name}.{each}"] = modules[each] = module
            exec(code[each], module.__dict__)
            setattr(package, each, module)
    finally:
        for each in [name, *(f"{name}.{each}" for each in code)]:
            sys.modules.pop(each, None)
    return modules, sites


def read(directory: Path, names: Iterator[str] | list[str]) -> dict[str, str]:
    """The sources of a package's modules, by name."""
    return {name: (directory / f"{name}.py").read_text(encoding="utf-8") for name in names}
