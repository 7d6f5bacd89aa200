"""Keep what the documentation shows equal to what the program prints.

python scripts/readme.py            # run every `$ command` of the pages again and renew its output and the pictures
python scripts/readme.py --check    # say where a page and the program differ; exit code 1 if they do
python scripts/readme.py --command test     # print one of the README's set-up commands: try, or test
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md", "docs/index.md", "docs/cli.md", "docs/python.md", "docs/json.md", "docs/microcontrollers.md",
    "docs/offload.md",
    "docs/capture.md", "docs/io.md",
)  # fmt: skip
CONSOLE = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
SET_UP = re.compile(r"<!-- set-up: (\w+) -->\s*```bash\n(.*?)\n```", re.DOTALL)
PICTURES = {
    "docs/images/llama-3.1-8b-training.png": "peakline estimate llama-3.1-8b --device h100-sxm --train --batch 1 "
    "--seq 8192 --dtype bf16 --optimizer adamw --recompute full --plot",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page is out of date")
    parser.add_argument("--command", choices=("try", "test"), help="print one of the README's set-up commands")
    options = parser.parse_args()
    if options.command:
        print(set_up_command(options.command))
        return 0
    stale = [page for page in PAGES if not renew(ROOT / page, check=options.check)]
    if not options.check:
        for picture, command in PICTURES.items():
            shell(f"{command} {ROOT / picture}")
    return 1 if stale and options.check else 0


def set_up_command(name: str) -> str:
    """The one-line command that the README marks with this name."""
    commands = dict(SET_UP.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert "\n" not in commands[name], f"README.md: the {name} command must be one line"
    return commands[name]


def renew(page: Path, *, check: bool) -> bool:
    """Whether the page shows what its commands print; unless `check`, it does so afterwards."""
    old = page.read_text(encoding="utf-8")
    new = CONSOLE.sub(lambda block: session(block[0]), old)
    if new == old:
        return True
    name = str(page.relative_to(ROOT))
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, "what it prints"))
    if not check:
        page.write_text(new, encoding="utf-8")
    return False


def session(block: str) -> str:
    """The block with each `$ command` followed by what it prints now."""
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"$ {command}\n{shell(command)}" for command in commands)


def shell(command: str) -> str:
    """What a command prints, run in a folder that holds `examples`, with this interpreter's `peakline`."""
    beside = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1", "COLUMNS": "120"}
    folder = tempfile.mkdtemp()
    shutil.copytree(ROOT / "docs" / "examples", Path(folder) / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
