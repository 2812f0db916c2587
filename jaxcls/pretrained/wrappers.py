"""Finds the tensors of a network in a file: in which table, and behind which prefix.

Trainers wrap networks (DataParallel, torch.compile, Lightning, the user's own classes), and each
wrapper adds a prefix to all names: `module.`, `_orig_mod.`, `model.`, `backbone.`. A checkpoint may
have several tables, some with moving averages of the weights. This module finds the network in
files of every format.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxcls.pretrained.families import FAMILIES
from jaxcls.pretrained.limits import RefusedError, excerpt
from jaxcls.pretrained.unpickling import Placeholder, Storage, Tensor

# Keys under which training scripts save the state dict, in the order of the search.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
STATE_DICTS = ("state_dict", "model", "model_state_dict", "model_state", "current_model_state")
MAX_DEPTH = 8  # of tables within tables
MAX_NETWORKS = 16

# Prefixes of DataParallel and AveragedModel, torch.compile, and Lightning, for unknown networks.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_AVERAGED = "n_averaged"  # AveragedModel's counter, beside its "module."
_NAMES_OF_AVERAGES = re.compile(
    r"(?i:(?:.*[^a-z])?(?:ema|swa|avg|averaged?|shadow|polyak)(?:[^a-z].*)?)|EMA[A-Z].*"
)
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class NetworkPlace:
    """Where a file has a network.

    Attributes:
      path: the keys that lead to its table, or the prefix of its tensors' names; "" at the top.
      averaged: whether its weights are moving averages.
    """

    path: str
    averaged: bool


def unwrap[T](
    tensors: Mapping[str, T], *, ema: bool
) -> tuple[dict[str, T], dict[str, T], tuple[str, ...]]:
    """Removes the prefix that all names of the network in a file have.

    Args:
      tensors: the file's tensors by name.
      ema: if the file has both, whether to take the moving averages or the weights.

    Returns:
      inside: the network's tensors, by their names without the prefix.
      outside: the other tensors, by their names in the file.
      notes: sentences on what was done.

    Raises:
      RefusedError: there are several networks, or only moving averages and `ema` is False.
    """
    prefixes = _prefixes(tensors)
    if not prefixes:
        prefixes = [_shared_prefix(tensors)]
    if len(prefixes) > MAX_NETWORKS:
        raise RefusedError(
            f"it holds {len(prefixes)} networks; save the one you want in a separate file"
        )
    found = [NetworkPlace(prefix, _is_averaged(prefix, tensors)) for prefix in prefixes]
    chosen = choose(found, ema=ema)
    others = [network for network in found if network is not chosen]
    inside: dict[str, T] = {}
    outside: dict[str, T] = {}
    for name, tensor in tensors.items():
        owner = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
        if owner is not None and owner == chosen.path:
            inside[name.removeprefix(owner)] = tensor
        elif owner is None and name.rpartition(".")[2] != _AVERAGED:
            outside[name] = tensor
    notes = []
    if chosen.path and not outside:
        notes.append(f"prefix {excerpt(chosen.path)} removed from all names")
    elif chosen.path:
        notes.append(f"prefix {excerpt(chosen.path)} removed from {len(inside)} names")
    if others:
        notes.append(_preferred(chosen, others))
    if _AVERAGED in tensors and _AVERAGED not in inside:
        notes.append(f"left out: {_AVERAGED}")
    return inside, outside, tuple(notes)


def choose(found: Sequence[NetworkPlace], *, ema: bool) -> NetworkPlace:
    """Returns the network to read.

    Args:
      found: the networks in the file, at least one.
      ema: whether to prefer moving averages to the weights.

    Raises:
      RefusedError: there are several to choose from, or only moving averages and `ema` is False.
    """
    averages = [network for network in found if network.averaged]
    weights = [network for network in found if not network.averaged]
    if not ema and not weights:
        raise RefusedError(
            f"it holds only moving averages of the weights{_at(averages[0])}; drop --no-ema (or "
            "model.weights_ema=False) to use them"
        )
    wanted = (averages or weights) if ema else weights
    if len(wanted) > 1:
        names = ", ".join(excerpt(network.path or "no prefix") for network in wanted[:_LISTED])
        raise RefusedError(
            f"it holds several networks ({names}); save the one you want in a separate file"
        )
    return wanted[0]


def _at(network: NetworkPlace) -> str:
    return f" ({excerpt(network.path)})" if network.path else ""


def _preferred(chosen: NetworkPlace, others: Sequence[NetworkPlace]) -> str:
    """Returns a sentence on which network was used instead of which."""
    names = ", ".join(excerpt(network.path or "no prefix") for network in others[:_LISTED])
    if chosen.averaged:
        return (
            f"used the moving averages of the weights; --no-ema (model.weights_ema=False) uses "
            f"the weights themselves, in {names}"
        )
    if any(network.averaged for network in others):
        return f"used the weights, not their moving averages, in {names}"
    return f"other networks of the file were not used: {names}"


def _prefixes(names: Collection[str]) -> list[str]:
    """Returns the prefix of each known network, sorted."""
    found: set[str] = set()
    for family in FAMILIES:
        if family.separator:
            pattern = re.compile(rf"(|.*{re.escape(family.separator)})(?:{family.telltale})")
            found |= {match[1] for name in names if (match := pattern.fullmatch(name))}
        elif any(re.fullmatch(family.telltale, name) for name in names):
            found.add("")
    return sorted(found)


def _shared_prefix(names: Collection[str]) -> str:
    """Returns the usual wrappers' prefix of all names, for an unknown network."""
    inner = [name for name in names if name != _AVERAGED]
    taken = ""
    while inner and (p := next((p for p in _PREFIXES if all(n.startswith(p) for n in inner)), "")):
        taken += p
        inner = [name.removeprefix(p) for name in inner]
    return taken


def _is_averaged(prefix: str, names: Collection[str]) -> bool:
    parts = re.split(r"(?<=[./])", prefix)[:-1]  # each with its separator
    return any(_NAMES_OF_AVERAGES.fullmatch(part[:-1]) for part in parts) or any(
        "".join(parts[:number]) + _AVERAGED in names for number in range(len(parts))
    )


# --- checkpoints: tables within tables -----------------------------------------------------------


def state_dict(content: Any, *, ema: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Finds the table of tensors in a checkpoint.

    Args:
      content: what `unpickle` returned.
      ema: if there are both, whether to take the moving averages or the weights.

    Returns:
      tensors: by their names in the table.
      notes: sentences on the entry with the table, and on the other entries.

    Raises:
      RefusedError: there is no table of tensors, or there are several to choose from.
    """
    if isinstance(content, Tensor):
        raise RefusedError("it holds a single tensor without a name")
    tables = _tables(content)
    paths = _candidates(content, tables)
    averaged = [path for path in paths if _is_average(content, path, tables[path])]
    weights = [path for path in paths if path not in averaged]
    paths = [*_first(averaged), *_first(weights)]
    found = [NetworkPlace("/".join(path), path in averaged) for path in paths]
    chosen = choose(found, ema=ema)
    path = paths[found.index(chosen)]
    state = _only_tensors(tables[path])
    notes = []
    if path:
        notes.append(f"tensors taken from the checkpoint's entry {excerpt(chosen.path)}")
    if len(found) > 1:
        notes.append(_preferred(chosen, [network for network in found if network is not chosen]))
    elif chosen.averaged:
        notes.append("used moving averages of the weights")
    left_out = [_label(key) for key in _items(content) if path and key != path[0]]
    left_out += [_label(key) for key in tables[path] if key not in state]
    if left_out:
        some = ", ".join(excerpt(name, 40) for name in left_out[:_LISTED])
        more = f" and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        notes.append(f"left out of the checkpoint: {some}{more}")
    return state, tuple(notes)


type _Path = tuple[str, ...]


def _tables(content: Any) -> dict[_Path, Mapping[Any, Any]]:
    """Returns every table of named tensors by its path; if it has several paths, a usual one."""
    found: dict[int, tuple[_Path, Mapping[Any, Any]]] = {}
    seen: set[int] = set()
    waiting: list[tuple[_Path, Any]] = [((), content)]
    for path, value in waiting:  # grows during the loop
        if id(value) in found:
            other, items = found[id(value)]
            found[id(value)] = min(path, other, key=_rank), items
        if id(value) in seen or len(path) > MAX_DEPTH:
            continue
        seen.add(id(value))
        items = _items(value)
        if _only_tensors(items):
            found[id(value)] = path, items
        waiting += [
            ((*path, str(key)), item)
            for key, item in items.items()
            if isinstance(item, dict | list | tuple | Placeholder)
        ]
    return dict(found.values())


def _rank(path: _Path) -> tuple[int, int]:
    """Ranks paths: the top first, then the usual names in their order, then the shortest."""
    usual = (*AVERAGES, *STATE_DICTS)
    if not path:
        return -1, 0
    return usual.index(path[-1]) if path[-1] in usual else len(usual), len(path)


def _items(value: Any) -> Mapping[Any, Any]:
    """Returns the items of a table, a list, or an object that acts as a table."""
    match value:
        case Tensor() | Storage():
            return {}
        case dict():
            return value
        case list() | tuple():
            return dict(enumerate(value))
        case Placeholder():
            return value.table
    return {}


def _candidates(content: Any, tables: Mapping[_Path, Mapping[Any, Any]]) -> list[_Path]:
    """Returns the tables with a known network; else those where state dicts usually are."""
    known = [path for path, items in tables.items() if _prefixes(_only_tensors(items))]
    usual = [(name,) for name in (*AVERAGES, *STATE_DICTS) if (name,) in tables]
    if paths := known or usual or [path for path in tables if not path]:
        return paths
    whole = [value for value in (content, *_items(content).values()) if _is_model(value)]
    if whole:
        raise RefusedError(
            f"it is a whole pickled model, with {excerpt(whole[0].name)}, not its tensors; "
            "nothing in it was run"
        )
    if not isinstance(content, dict):
        kind = content.name if isinstance(content, Placeholder) else type(content).__name__
        raise RefusedError(f"it holds a {excerpt(kind)}, not a table of tensors")
    some = ", ".join(_label(key)[:40] for key in list(content)[:5])
    raise RefusedError(
        f"it holds no tensors at its top or under {', '.join((*AVERAGES, *STATE_DICTS))} "
        f"(it has {excerpt(some, 200)})"
    )


def _is_average(content: Any, path: _Path, items: Mapping[Any, Any]) -> bool:
    """Returns whether a table has moving averages.

    Lightning's WeightAveraging saves them in the usual place of the weights, and adds an entry.
    """
    if path == ("state_dict",) and "averaging_state" in _items(content):
        return True
    return _AVERAGED in items or any(map(_NAMES_OF_AVERAGES.fullmatch, path))


def _first(paths: Sequence[_Path]) -> list[_Path]:
    best = min(map(_rank, paths), default=None)
    return [path for path in paths if _rank(path) == best]


def _is_model(value: Any) -> bool:
    return isinstance(value, Placeholder) and value.is_model


def _label(key: Any) -> str:
    return key.name if isinstance(key, Placeholder) else str(key)


def _only_tensors(table: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in table.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
