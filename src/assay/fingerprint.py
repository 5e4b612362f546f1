"""Fingerprints: when two pieces of work are the same work.

A training is kept under a fingerprint of everything that its result depends on. Values (numbers, tensors, data sets,
dataclasses) enter with their content; functions and classes enter with their *code*: the syntax tree of the definition
and of everything first-party that it refers to, without comments, docstrings, annotations or layout. So a changed loss
gives another fingerprint; a changed comment, a renamed neighbour or an unrelated function does not. Third-party code
enters with its package's version.

The code part reads source files and never imports them, so that ``assay list`` can tell stale evidence without torch.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from assay.errors import AssayError

#: Version of what the training loop and the lab compute, raised by hand when the same recipe would train otherwise.
#: It stands for the code of :data:`_INFRASTRUCTURE`, so that tidying that code does not throw away what was measured.
PROTOCOL = 1
_INFRASTRUCTURE = (
    "assay.clock",
    "assay.data.registry",  # what it loads enters with its content; a new entry is no change of the others
    "assay.errors",
    "assay.fingerprint",
    "assay.lab",
    "assay.paper",
    "assay.recipe",
    "assay.train.devices",
    "assay.train.loop",
)

#: Decorators whose arguments are words about the work, not the work: rewording a claim does not call for running it again.
_WORDS_ONLY = {"claim"}


def code_fingerprint(module: str, name: str, expectations: bool = False) -> str:
    """Fingerprint of one top-level definition and of all first-party code that it refers to, read from the files.

    Versions of other packages stay out of it: they are recorded beside every result.

    Args:
        module: dotted name of the module, as in ``"assay.papers.labels.elr"``.
        name: a top-level function, class or assignment in it.
        expectations: whether what a claim expects counts too. What was measured does not depend on it, the verdict does.

    Returns:
        32 hexadecimal digits.
    """
    reached = _reached(module, name, expectations)
    bare = {key: text.split("@")[0] if text.startswith("external:") else text for key, text in reached.items()}
    return _digest({"protocol": str(PROTOCOL), **bare})


def code_files(module: str, name: str) -> list[Path]:
    """The first-party files that hold what a claim's fingerprint is made of: whoever asks when it changed looks at these."""
    modules = {key.lstrip("*").partition(":")[0] for key in _reached(module, name, expectations=True)}
    origins = [_origin(known) for known in modules if _first_party(known) and not _is_infrastructure(known)]
    return sorted(Path(origin[0]) for origin in origins if origin is not None)


def _is_infrastructure(module: str) -> bool:
    return any(module == known or module.startswith(f"{known}.") for known in _INFRASTRUCTURE)


def _reached(module: str, name: str, expectations: bool) -> dict[str, str]:
    reached: dict[str, str] = {}
    _reach(module, name, reached)
    if expectations:
        source = _source(module)
        for statement in source.definitions.get(name, []) if source else []:
            for word in _expected(statement):
                reached[f"{module}:{name} expects"] = ast.dump(word)
                _follow(module, _names(word), reached)
    return reached


def _expected(statement: ast.stmt) -> list[ast.expr]:
    """What stands behind ``expect=`` in the decorators of a claim."""
    calls = [d for d in getattr(statement, "decorator_list", []) if isinstance(d, ast.Call)]
    return [word.value for call in calls for word in call.keywords if word.arg == "expect"]


def fingerprint(*values: object) -> str:
    """Fingerprint of any values: 32 hexadecimal digits, the same in every process on every machine.

    Raises:
        AssayError: a value has no content that could be read (an open file, a generator).
    """
    reached: dict[str, str] = {}
    described = [_describe(value, reached, f"value {place}") for place, value in enumerate(values)]
    return _digest({"values": "\n".join(described), **reached})


def _digest(parts: Mapping[str, str]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for key in sorted(parts):
        whole.update(f"{key}\0{parts[key]}\0".encode())
    return whole.hexdigest()


# ---------------------------------------------------------------------------------------------------- values


def _describe(value: object, reached: dict[str, str], where: str) -> str:
    """A text that differs whenever the value does; code that the value refers to is added to ``reached``."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, enum.Enum):
        return f"enum:{type(value).__qualname__}.{value.name}"
    if isinstance(value, Path):
        return f"path:{value}"
    if isinstance(value, Mapping):
        items = [(_describe(k, reached, where), _describe(v, reached, f"{where}[{k!r}]")) for k, v in value.items()]
        return "{" + ",".join(f"{k}={v}" for k, v in sorted(items)) + "}"
    if isinstance(value, (list, tuple)):
        inner = ",".join(_describe(v, reached, f"{where}[{i}]") for i, v in enumerate(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, (set, frozenset)):
        return f"set({','.join(sorted(_describe(v, reached, where) for v in value))})"
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return "partial(" + ",".join(_describe(part, reached, where) for part in parts) + ")"
    if isinstance(value, MethodType):
        return f"method({_describe(value.__self__, reached, where)}.{_describe(value.__func__, reached, where)})"
    if isinstance(value, (FunctionType, type)):
        return _describe_code(value, reached, where)
    if isinstance(value, ModuleType) and _first_party(value.__name__) and _source(value.__name__) is not None:
        for name in _source(value.__name__).definitions:  # type: ignore[union-attr]
            _reach(value.__name__, name, reached)
        return f"module:{value.__name__}"
    if isinstance(value, (BuiltinFunctionType, ModuleType)):
        return _external(f"{getattr(value, '__module__', None) or ''}.{value.__name__}".lstrip("."))
    if callable(value) and hasattr(value, "__wrapped__"):  # a decorated function that kept what it wraps
        return _describe(value.__wrapped__, reached, where)
    own = getattr(value, "fingerprint", None)
    if isinstance(own, str):  # data sets know their own content
        return f"fingerprint:{own}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = ",".join(
            f"{f.name}={_describe(getattr(value, f.name), reached, f'{where}.{f.name}')}" for f in dataclasses.fields(value)
        )
        return f"{_describe_code(type(value), reached, where)}({inner})"
    return _describe_array(value, reached, where)


def _describe_array(value: Any, reached: dict[str, str], where: str) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind.startswith("numpy"):
        import numpy

        array = numpy.ascontiguousarray(value)
        if array.dtype != object:
            return f"array:{array.dtype}{array.shape}:{hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()}"
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return f"tensor:{value.dtype}{tuple(value.shape)}:{hashlib.blake2b(flat.data, digest_size=16).hexdigest()}"
        if isinstance(value, torch.nn.Module):
            settings = {k: v for k, v in vars(value).items() if not k.startswith("_") and k != "training"}
            settings["frozen"] = [name for name, p in value.named_parameters(recurse=False) if not p.requires_grad]
            children = {name: _describe(child, reached, f"{where}.{name}") for name, child in value.named_children()}
            own = {**dict(value.named_parameters(recurse=False)), **dict(value.named_buffers(recurse=False))}
            parts = (settings, children, {k: v for k, v in own.items() if v is not None})
            return _describe_code(type(value), reached, where) + "".join(_describe(p, reached, where) for p in parts)
        if isinstance(value, (torch.dtype, torch.device, torch.Size)):
            return f"{kind}:{value}"
    raise AssayError(
        f"{where} is a {kind}, whose content cannot be fingerprinted: use numbers, tensors, frozen dataclasses, or top-level "
        "functions and classes (with functools.partial for their arguments)."
    )


def _describe_code(value: Any, reached: dict[str, str], where: str) -> str:
    module, qualname = value.__module__, value.__qualname__
    if not _first_party(module):
        return _external(f"{module}.{qualname}")
    if "<locals>" not in qualname and "<lambda>" not in qualname and _source(module) is not None:
        _reach(module, qualname.split(".")[0], reached)
        return f"code:{module}.{qualname}"
    # A lambda or an inner function: its own lines, the values it closes over, and the globals it names.
    try:
        tree = ast.parse(_expression_text(value))
    except (OSError, TypeError, SyntaxError) as error:
        raise AssayError(f"{where} is {qualname}, whose source cannot be read ({error}): define it in a file.") from None
    tree = _normalise(tree)
    text = ast.dump(tree)
    functions = [value] if isinstance(value, FunctionType) else [v for v in vars(value).values() if isinstance(v, FunctionType)]
    for function in functions:
        code = function.__code__
        # The statement around a lambda may hold several; its compiled code tells them apart.
        text += f"|{code.co_code!r}{[c for c in code.co_consts if not isinstance(c, CodeType)]!r}{code.co_names!r}"
        closed = {
            name: _describe(cell.cell_contents, reached, f"{where}.{name}")
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
            if cell.cell_contents is not value  # a class that its own methods name
        }
        text += _describe([closed, function.__defaults__, function.__kwdefaults__], reached, where)
        for name in _names(tree):
            head, *rest = name.split(".")
            used = function.__globals__.get(head)
            while rest and isinstance(used, ModuleType):
                used = getattr(used, rest.pop(0), None)
            if used is not None and not isinstance(used, ModuleType):
                text += f"{name}={_describe(used, reached, f'{where}.{name}')}"
    return f"local:{text}"


def _expression_text(value: Any) -> str:
    """The source of a function; for a lambda, which is part of a line, the whole statement around it."""
    text = textwrap.dedent(inspect.getsource(value)).strip()
    try:
        ast.parse(text)
    except SyntaxError:
        text = "(" + text.rstrip(",") + ")"
    return text


def _external(name: str) -> str:
    root = name.split(".")[0]
    return f"external:{name}@{_version(root)}"


@functools.cache
def _version(root: str) -> str:
    if root in sys.stdlib_module_names or root == "builtins":
        return "python"
    try:
        return importlib.metadata.version({"sklearn": "scikit-learn"}.get(root, root))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# ---------------------------------------------------------------------------------------------------- code


class _Source:
    """The top-level definitions and imports of one module, as its file says them."""

    def __init__(self, module: str, text: str, is_package: bool) -> None:
        self.module = module
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, list[tuple[str, str | None]]] = {}  # alias -> (module, name in it or None for the module)
        self.stars: list[str] = []  # modules whose names were all imported
        self.normalised: dict[str, tuple[str, list[str]]] = {}  # definition -> its tree as text, the names that it reads
        package = module if is_package else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    self.imports.setdefault(bound, []).append((alias.name if alias.asname else bound, None))
            elif isinstance(node, ast.ImportFrom):
                origin = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    origin = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    if alias.name == "*":
                        self.stars.append(origin)
                    else:
                        self.imports.setdefault(alias.asname or alias.name, []).append((origin, alias.name))
        for statement in ast.parse(text).body:
            for name in _defined(statement):
                self.definitions.setdefault(name, []).append(statement)


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
    elif isinstance(statement, ast.Expr):  # TABLE.update(...) defines what the table is, too
        if isinstance(statement.value, ast.Call) and isinstance(statement.value.func, ast.Attribute):
            yield from (node.id for node in ast.walk(statement.value.func) if isinstance(node, ast.Name))
    elif isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
        for inner in ast.walk(statement):
            if isinstance(inner, ast.stmt) and inner is not statement:
                yield from _defined(inner)


@functools.cache
def _origin(module: str) -> tuple[str, bool] | None:
    """File of a module's source and whether it is a package; None for what has no Python source."""
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        return (file, False) if file else None
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root)
        # Looked up folder by folder: Python's own search would import every package on the way.
        for name in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return spec.origin, spec.submodule_search_locations is not None


def _source(module: str) -> _Source | None:
    origin = _origin(module)
    if origin is None:
        return None
    path, is_package = origin
    return _read(module, path, is_package, os.stat(path).st_mtime_ns)


@functools.cache
def _read(module: str, path: str, is_package: bool, changed: int) -> _Source:
    return _Source(module, Path(path).read_text(encoding="utf-8"), is_package)


@functools.cache
def _first_party(module: str) -> bool:
    """assay itself, and whatever of the user's does not come out of an installed package."""
    root = module.split(".")[0]
    if root == "assay" or root == "__main__":
        return True
    if root in sys.stdlib_module_names or root == "builtins":
        return False
    origin = _origin(root)
    if origin is None:  # a notebook, or a file that was run without being importable: somebody's own all the same
        return True
    return not {"site-packages", "dist-packages"} & set(Path(origin[0]).parts)


def _reach(module: str, name: str, reached: dict[str, str]) -> None:
    """Add the definition ``module.name`` and all that it refers to."""
    key = f"{module}:{name}"
    if key in reached:
        return
    if _is_infrastructure(module):
        reached[key] = f"protocol {PROTOCOL}"
        return
    if not _first_party(module):
        reached[key] = _external(f"{module}.{name}")
        return
    source = _source(module)
    if source is None:
        reached[key] = "no source"
        return
    statements = source.definitions.get(name)
    if statements is None:
        for origin in source.imports.get(name, []):
            _reach_import(origin, "", reached)
        if name not in source.imports:
            if _origin(f"{module}.{name}") is not None:
                reached[key] = "module"
            for star in source.stars if f"*{key}" not in reached else []:
                reached[f"*{key}"] = ""  # stars may point at each other
                _reach(star, name, reached)
        return
    if name not in source.normalised:  # once a process: many claims reach the same definitions
        trees = [_normalise(statement) for statement in statements]
        names = sorted({used for tree in trees for used in _names(tree)})
        source.normalised[name] = ("".join(ast.dump(tree) for tree in trees), names)
    reached[key], names = source.normalised[name]  # entered before the walk: definitions may refer to each other
    _follow(module, names, reached)


def _follow(module: str, names: list[str], reached: dict[str, str]) -> None:
    """Add what the names that a piece of a module's code reads stand for."""
    source = _source(module)
    assert source is not None
    for used in names:
        head, _, rest = used.partition(".")
        if head in source.definitions:
            _reach(module, head, reached)
        elif head in source.imports:
            for origin in source.imports[head]:
                _reach_import(origin, rest, reached)
        elif source.stars:
            _reach(module, head, reached)


def _reach_import(origin: tuple[str, str | None], rest: str, reached: dict[str, str]) -> None:
    """Follow ``from module import name`` (or ``import module``) and then the attributes ``rest``."""
    module, name = origin
    path = [part for part in ([name] if name else []) + rest.split(".") if part]
    while path and _first_party(module) and _origin(f"{module}.{path[0]}") is not None:
        module, path = f"{module}.{path[0]}", path[1:]
    if path:
        _reach(module, path[0] if _first_party(module) else ".".join(path), reached)


def _normalise(tree: ast.AST) -> Any:
    """The tree without what cannot change the result: docstrings, annotations, words about claims."""
    return _Normaliser().visit(_copy(tree))


def _copy(tree: ast.AST) -> ast.AST:
    return ast.parse(ast.unparse(tree))


class _Normaliser(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        node.decorator_list = [d for d in node.decorator_list if _decorator_name(d) not in _WORDS_ONLY]
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_docstring(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node


def _decorator_name(node: ast.expr) -> str:
    target = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(target).split(".")[-1]


def _names(tree: ast.AST) -> list[str]:
    """Every name that is read, with its attributes: ``F.relu`` for ``F.relu(x)``; sorted, each once."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            found.add(".".join([inner.id, *reversed(parts)]))
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return sorted(found)
