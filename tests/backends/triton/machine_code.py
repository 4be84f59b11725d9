"""Machine code of a kernel, searched for registers that are read where no path has written them.

ptxas may miscompile what Triton hands it. Where it lost a copy, it read what the time before in a
loop had left, and the first time nothing at all: that is seen here, on a machine without a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import triton

NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
REGISTER = re.compile(r"(?<![U\w])R(\d+)")
ALL = range(256)
# Their first operand is no register that they write.
WRITES_NONE = re.compile(
    r"ST|RED|BRA|EXIT|BAR|U?ISETP|FSETP|HSETP|DSETP|PLOP3|FCHK|NOP|WARPSYNC|BSSY|BSYNC|"
    r"UTMA|SYNCS|FENCE|MEMBAR|CCTL|DEPBAR|LDGSTS"
)
Blocks = Mapping[str, Sequence[str]]


def read_unwritten(cubin: bytes) -> list[str]:
    """Instructions that read a register which was not written on every way to them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(NVDISASM), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return in_listing(text)


def in_listing(text: str) -> list[str]:
    """The same of what nvdisasm prints."""
    blocks = blocks_of(text)
    names = list(blocks)
    known: dict[str, frozenset[int]] = {names[0]: frozenset()}
    waiting = [names[0]]
    while waiting:
        name = waiting.pop()
        written = known[name].union(*(effect(line)[0] for line in blocks[name]))
        for following in followers(names, blocks, name):
            common = known.get(following, written) & written
            if common != known.get(following):
                known[following] = common
                waiting.append(following)
    found = []
    for name in known:
        written = known[name]
        for line in blocks[name]:
            writes, reads = effect(line)
            if set(reads) - written:
                found.append(line)
            written = written.union(writes)
    return found


def blocks_of(text: str) -> Blocks:
    """Instructions by the label, or number, of the block that they are in; each ends in a jump."""
    blocks: dict[str, list[str]] = {"start": []}
    for raw in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", raw).strip()
        name = next(reversed(blocks))
        if label := re.match(r"(\.L_x_\d+):", line):
            blocks[label[1]] = []
        elif line.endswith(";") and not line.startswith("."):
            blocks[name].append(line.removesuffix(";").strip())
            if re.search(r"\b(BRA|EXIT|RET)\b", line):
                blocks[f"{len(blocks)}"] = []
    return blocks


def followers(names: Sequence[str], blocks: Blocks, name: str) -> list[str]:
    last = blocks[name][-1] if blocks[name] else ""
    jump = re.search(r"\bBRA\b.*\((\.L_x_\d+)\)", last)
    found = [jump[1]] if jump else []
    ends = re.match(r"(BRA|EXIT|RET)\b(?!.*!?U?P\d)", last)
    place = names.index(name) + 1
    return found if ends or place == len(names) else [*found, names[place]]


def effect(line: str) -> tuple[Sequence[int], list[int]]:
    """Registers that an instruction writes, one under a condition too, and those that it reads."""
    name, _, rest = re.sub(r"^@!?U?P\w+ ", "", line).partition(" ")
    if name.startswith(("CALL", "RET")):
        return ALL, []
    operands = [operand.strip() for operand in rest.split(",")]
    if name.startswith("SHFL"):
        del operands[0]
    if name == "PRMT" and operands[2] in ("0x7610", "0x7632") and operands[3] == operands[0]:
        operands = operands[:2]  # Half of a register is written; the other half may hold anything.
    target = REGISTER.fullmatch(operands[0])
    if target is None or WRITES_NONE.match(name):
        return [], [int(number) for number in REGISTER.findall(rest)]
    first = int(target[1])
    reads = [int(number) for operand in operands[1:] for number in REGISTER.findall(operand)]
    return range(first, first + count(name)), reads


def count(name: str) -> int:
    """Registers that an instruction writes, at most."""
    if "GMMA" in name:
        return 128
    if ".128" in name or re.match(r"[HIQ]MMA|LDSM|LDTM", name):
        return 4
    return 2 if re.search(r"\.64|\.WIDE|CS2R", name) else 1
