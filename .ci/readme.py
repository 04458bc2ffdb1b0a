"""Run every ```console block of a Markdown file, line by line from `$ `, in a scratch folder; stop at a failure.

`make` lines are left to the caller; ```python blocks run in the checkout's interpreter.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"


def main(path: str) -> int:
    text = Path(path).read_text()
    ran = 0
    with tempfile.TemporaryDirectory() as folder:
        for language, block in re.findall(r"```(console|python)\n(.*?)```", text, re.S):
            if language == "python":
                commands = [[str(BIN / "python"), "-c", block]]
            else:
                lines = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
                commands = [["bash", "-ec", line] for line in lines if not line.startswith(("make", "pip", "git"))]
            for command in commands:
                print("+", command[-1].strip().splitlines()[0], flush=True)
                env = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(Path.home())}
                done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
                if done.returncode:
                    print(done.stdout[-2000:], done.stderr[-2000:], f"exit {done.returncode}", sep="\n")
                    return 1
                ran += 1
    if not ran:
        print("no example found in", path)
        return 1
    print(f"{ran} examples of {path} ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
