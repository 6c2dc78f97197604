"""Libraries that stand in for CUDA's, which PyTorch from PyPI is linked to.

Without them PyTorch cannot be imported, and the real ones take gigabytes. Every function answers
that there is no device. Usage: cuda_stubs.py LIB_FOLDER_OF_TORCH OUT
"""

import collections
import pathlib
import re
import subprocess
import sys

FOREIGN = re.compile(r"lib(cu|nv|nccl)")


def output(*command: object) -> str:
    return subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout


def main(torch: pathlib.Path, out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    needed: set[str] = set()
    # File of a version; symbols by file and version.
    file_of: dict[str, str] = {}
    symbols: dict[str, dict[str, set[str]]] = collections.defaultdict(
        lambda: collections.defaultdict(set)
    )
    loose: set[str] = set()
    for library in sorted(torch.glob("*.so*")):
        needed |= {
            name
            for name in re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", library))
            if FOREIGN.match(name) and not (torch / name).exists()
        }
        file = ""
        for line in output("readelf", "-V", "-W", library).splitlines():
            if found := re.search(r"File: (\S+)", line):
                file = found[1]
            elif (found := re.search(r"Name: (\S+)", line)) and FOREIGN.match(file):
                file_of[found[1]] = file
        for line in output("nm", "-D", "--undefined-only", library).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if version.strip("@") in file_of:
                symbols[file_of[version.strip("@")]][version.strip("@")].add(name)
            elif re.match(r"(__)?(cu|nv|nccl)", name):
                loose.add(name)
    for i, library in enumerate(sorted(needed)):
        versions = symbols[library]
        names = set().union(*versions.values()) | (loose if i == 0 else set())
        source, script = out / f"{library}.c", out / f"{library}.map"
        # 100 is cudaErrorNoDevice.
        source.write_text("".join(f"long {name}(void) {{ return 100; }}\n" for name in names))
        script.write_text(
            "".join(
                f"{version} {{ global: {' '.join(f'{n};' for n in sorted(found))} }};\n"
                for version, found in versions.items()
            )
            or "NONE { };\n"
        )
        command = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", "-o", out / library, source]
        command += [f"-Wl,-soname,{library}"]
        command += [f"-Wl,--version-script={script}"] if versions else []
        output(*command)


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
