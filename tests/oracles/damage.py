"""Files as a stranger may have written them: what was there, changed, and sealed again."""

from __future__ import annotations

import json
import math
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fisherscope.structures.manifest import file_record, signed

Files = dict[str, bytes]

# What no code expects, in values and in names.
ODD = [
    "",
    "x" * 300,
    "../../x",
    "/dev/zero",
    "a\0b",
    "\ud800",
    "~nobody/x",
    "%FF",
    "a b",
    ".x",
    "1",
]
# Nesting that json.dumps itself would not survive; put in after it.
DEEP = {f"@{depth}": "[" * depth + "]" * depth for depth in (60, 900, 990, 10**5)}
HOT = st.sampled_from([*ODD, *DEEP, 2**62, 10**400, -1, 0, None, math.inf, math.nan, [], {}])
VALUES = HOT | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | HOT,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5) | st.sampled_from(ODD), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
# Beside any bytes, what YAML and JSON make something special of.
BYTES = st.binary(min_size=1, max_size=9) | st.sampled_from([
    b"\0", b"\xff\xfe", b"\n", b"&a [*a]", b"*a", b"!!bool x", b"!!int ''", b"!!timestamp x",
    b"2001-99-99", b"? [a]\n", b"1e999", b"NaN", b"9" * 5000, b"[" * 2000, b'{"a":' * 2000,
])  # fmt: skip
IN_JSON = ["value", "graft", "drop"]
IN_BYTES = ["flip", "cut", "insert"]
OF_FILES = ["lose", "folder", "rename"]


@dataclass(frozen=True)
class Damage:
    """One change: how, to which file and place (both modulo what there is), and what is put."""

    how: str
    file: int
    place: int
    other: int
    value: Any
    content: bytes


HOWS = 4 * IN_JSON + 2 * IN_BYTES + OF_FILES
NUMBERS = st.integers(0, 2**20)
DAMAGES = st.lists(
    st.builds(Damage, st.sampled_from(HOWS), NUMBERS, NUMBERS, NUMBERS, VALUES, BYTES),
    min_size=1, max_size=2,
)  # fmt: skip


def read_files(root: Path) -> Files:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def put(root: Path, files: Files, damages: list[Damage]) -> None:
    """Fill a folder with files, damaged and with checksums that fit again."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    folders: list[str] = []
    for damage in damages:
        files = _changed(files, damage, folders)
    for name, content in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for name in folders:
        if not (root / name).exists():
            (root / name).mkdir(parents=True)
    _seal(root)


def _changed(files: Files, damage: Damage, folders: list[str]) -> Files:
    if not files:
        return files
    names = sorted(files)
    name = names[damage.file % len(names)]
    content = files[name]
    if damage.how == "rename":
        old, new = name.split("/")[0], ODD[damage.place % len(ODD)].replace("/", "_")[:200]
        new = new.encode("utf-8", "replace").decode().replace("\0", "") or "%"
        if any(n.split("/")[0] == new for n in files):
            return files
        return {new + n[len(old) :] if n.split("/")[0] == old else n: c for n, c in files.items()}
    if damage.how in OF_FILES:
        if damage.how == "folder":
            folders.append(name)
        return {n: c for n, c in files.items() if n != name}
    if damage.how in IN_JSON:
        return {**files, name: _in_json(name, content, damage)}
    return {**files, name: _in_bytes(content, damage)}


def _in_bytes(content: bytes, damage: Damage) -> bytes:
    place = damage.place % max(1, len(content))
    if damage.how == "cut":
        return content[:place]
    if damage.how == "flip" and content:
        changed = bytes([content[place] ^ max(1, damage.content[0])])
        return content[:place] + changed + content[place + 1 :]
    return content[:place] + damage.content + content[place:]


def _in_json(name: str, content: bytes, damage: Damage) -> bytes:
    """Another value in a JSON file, in a line of several, or in the header of safetensors."""
    before, after = b"", b""
    if name.endswith(".safetensors") and len(content) > 8:
        (length,) = struct.unpack("<Q", content[:8])
        content, after = content[8 : 8 + length], content[8 + length :]
    elif name.endswith(".jsonl"):
        lines = content.split(b"\n")
        line = damage.other % len(lines)
        before, content, after = (
            b"".join(part + b"\n" for part in lines[:line]), lines[line],
            b"".join(b"\n" + part for part in lines[line + 1 :]),
        )  # fmt: skip
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return before + _in_bytes(content, damage) + after
    text = json.dumps(_with(value, damage))
    for mark, nested in DEEP.items():
        text = text.replace(f'"{mark}"', nested)
    body = text.encode("ascii")
    if name.endswith(".safetensors"):
        before = struct.pack("<Q", len(body))
    return before + body + after


def _with(value: Any, damage: Damage) -> Any:
    paths = list(_paths(value))
    path, other = paths[damage.place % len(paths)], paths[damage.other % len(paths)]
    if not path:
        return damage.value
    new = _at(value, other) if damage.how == "graft" else damage.value
    new = json.loads(json.dumps(new)) if damage.how == "graft" else new  # never into itself
    holder = _at(value, path[:-1])
    if damage.how == "drop":
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return value


def _at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def _paths(value: Any, here: tuple = ()):
    yield here
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _paths(value[key], (*here, key))


def _seal(root: Path) -> None:
    """Checksums that fit whatever the files hold now: an attacker can compute them, too."""
    for place in sorted(root.rglob("*.json"), key=lambda p: -len(p.parts)):
        try:
            body = json.loads(place.read_bytes())
            del body["checksum"]
            records = {n: (place.parent / n) for n in body["files"]}
            body["files"] = {n: file_record(p) for n, p in records.items() if p.is_file()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # no manifest, or none any more: as it is
        place.write_text(json.dumps(signed(body)))
