"""The package's own source, compiled with points before what threads share.

The syntax tree of each module is changed so that a call of the scheduler stands directly
before each step that another thread could see or disturb: a load, store or deletion of an
attribute that changes after its object was made, a subscript, a method of a list, deque,
dict or set, an iterator's step, a test for emptiness. Another call marks where CPython with
a GIL can switch threads: after each call, on function entry, and on a backward jump. The
steps themselves are the package's, and `x.a += 1` is a load and a store. The interpreter's
version plays no part, so a schedule can be replayed on any other.

`map` steps through what it is given with a point before each step, and `threading`,
`_thread` and the like are replaced where the modules import them, by what the scheduler
controls.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
from collections.abc import Iterable, Mapping
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

#: What these store is stored before others know the object, or in a forked child.
UNSHARED = {
    "__init__", "empty", "_empty_queue", "_empty_workers", "attach", "lose", "_lose", "forget",
    "renew",
}  # fmt: skip
#: Not changed: they touch nothing that is shared.
UNTOUCHED = {"headroom"}


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
                first = child.args.posonlyargs + child.args.args
                look(child, first[0].arg if child.name in UNSHARED and first else "")
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
        if node.name in UNTOUCHED:
            return node
        self._depth += 1
        node.body = [self._mark(node.body[0]), *self._block(node.body)]
        self._depth -= 1
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def _mark(self, node: ast.AST) -> ast.stmt:
        """A statement that marks where threads can be switched."""
        statement = ast.copy_location(ast.Expr(self._call("mark", node)), node)
        return ast.fix_missing_locations(statement)

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        return [line for old in statements for line in self._lines(old)]

    def _lines(self, statement: ast.stmt) -> list[ast.stmt]:
        new: ast.stmt | list[ast.stmt] = self.visit(statement)
        return new if isinstance(new, list) else [new]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = self._block(node.body)
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
        if isinstance(target, ast.Subscript):
            assert isinstance(target.value, ast.Name), "not foreseen: of what is shared"
            node.value = self.visit(node.value)
            return node
        assert isinstance(target, ast.Attribute)
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
            simple = ast.Constant, ast.Name, ast.Attribute
            assert isinstance(node.slice, simple), ast.unparse(node)
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
        changed = self._visit_call(node)
        return self._call("after", node, changed) if self._depth else changed

    def _visit_call(self, node: ast.Call) -> ast.expr:
        function = node.func
        name: str | None = None
        writes = False
        helper = "look"
        if isinstance(function, ast.Attribute) and function.attr in METHODS:
            writes = METHODS[function.attr]
            helper = "method"
        elif isinstance(function, ast.Name) and function.id in LOOKING | LAZY and node.args:
            helper = "lazily" if function.id in LAZY else "look"
        elif (
            isinstance(function, ast.Name)
            and function.id in BY_NAME
            and isinstance(node.args[1], ast.Constant)
        ):
            name = str(node.args[1].value)
            writes = function.id in ("setattr", "delattr")
            helper = "by_name"
        else:
            self.generic_visit(node)
            return node
        if self._depth == 0:
            return node
        site = self._site(node, name, writes)
        self.generic_visit(node)
        call = self._call(helper, node, site, node.func, *node.args)
        call.keywords = node.keywords
        return call

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

    def visit_If(self, node: ast.If) -> ast.AST:
        node.test = self._looked_at(node.test)
        node.body, node.orelse = self._block(node.body), self._block(node.orelse)
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        spins = isinstance(node.body[0], ast.Pass) and self._depth
        # The backward jump comes before the test or after it, as the version likes.
        test = ast.BoolOp(ast.Or(), [self._call("mark", node.test), self._looked_at(node.test)])
        node.test = ast.copy_location(test, node.test)
        body = [self._mark(node.body[0]), *self._block(node.body)]
        if spins and not _is_call_of_acquire(test):
            spin = self._call("spin", node, ast.Name("self", ast.Load()))
            body.append(ast.fix_missing_locations(ast.copy_location(ast.Expr(spin), node)))
        node.body, node.orelse = body, self._block(node.orelse)
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        # What a call returned may be a generator, whose steps are as calls.
        first = [self._mark(node)] if isinstance(node.iter, ast.Call) else []
        node.iter = self._gone_over(node.iter)
        node.target = self.visit(node.target)
        node.body = [*first, *self._block(node.body), self._mark(node.body[-1])]
        node.orelse = self._block(node.orelse)
        return node

    def visit_Continue(self, node: ast.Continue) -> Any:
        return [self._mark(node), node]

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

    def _visit_elements(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> ast.AST:
        self.generic_visit(node)
        if self._depth:
            node.elt = self._call("after", node, node.elt)
        return node

    visit_ListComp = visit_SetComp = visit_GeneratorExp = _visit_elements

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.iter = self._gone_over(node.iter)
        node.ifs = [self._looked_at(test) for test in node.ifs]
        return node


def _is_call_of_acquire(test: ast.expr) -> bool:
    """Whether a loop waits for a lock in its test, and does not spin."""
    attributes = [node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)]
    return "acquire" in attributes


def _index(node: ast.expr) -> ast.expr:
    if not isinstance(node, ast.Slice):
        return node
    bounds = [bound or ast.Constant(None) for bound in (node.lower, node.upper, node.step)]
    call = ast.Call(ast.Name("slice", ast.Load()), [*bounds], [])
    return ast.fix_missing_locations(ast.copy_location(call, node))


def instrument(
    sources: Mapping[str, str], plain: Iterable[str]
) -> tuple[dict[str, types.CodeType], list[Site]]:
    """Compile modules with points; the code by name, and the places of the points.

    Those that are `plain` get none.
    """
    trees = {name: ast.parse(source) for name, source in sources.items()}
    shared = {name: tree for name, tree in trees.items() if name not in plain}
    changing = changing_attributes(shared)
    sites: list[Site] = []
    code: dict[str, types.CodeType] = {}
    for name, tree in trees.items():
        file = name.replace(".", "/") + ".py"
        if name in shared:
            tree = _Instrument(file, changing, sites).visit(tree)
            ast.fix_missing_locations(tree)
        code[name] = compile(tree, file, "exec", dont_inherit=True)
    return code, sites


def load(
    name: str,
    code: Mapping[str, types.CodeType],
    functions: Mapping[str, object],
    replaced: Mapping[str, object],
) -> dict[str, types.ModuleType]:
    """Import compiled modules as those of a package `name`, dependencies first.

    `functions` are built-in names there, `replaced` the modules that they get when they
    import those names. The package is in `sys.modules` for no longer than this takes.
    """

    def import_(module: str, *args: Any) -> Any:
        from_list, level = (*args[2:], None, 0)[:2] if len(args) < 4 else args[2:4]
        if level == 0 and module in replaced:
            return replaced[module if from_list else module.partition(".")[0]]
        return builtins.__import__(module, *args)

    names = {**vars(builtins), **functions, "__import__": import_}
    packages = [name, *{f"{name}.{each.rpartition('.')[0]}" for each in code if "." in each}]
    modules: dict[str, types.ModuleType] = {}
    entered = [*packages, *(f"{name}.{each}" for each in code)]
    try:
        for each in packages:
            package = sys.modules[each] = types.ModuleType(each)
            package.__path__ = []
        for each in code:
            module = types.ModuleType(f"{name}.{each}")
            module.__package__ = module.__name__.rpartition(".")[0]
            module.__file__ = f"/{name}/{each.replace('.', '/')}.py"
            module.__dict__["__builtins__"] = names
            sys.modules[f"{name}.{each}"] = modules[each.rpartition(".")[2]] = module
            exec(code[each], module.__dict__)
    finally:
        for each in entered:
            sys.modules.pop(each, None)
    return modules


def read(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """The sources of a package's modules, by name."""
    return {
        name: (directory / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        for name in names
    }
