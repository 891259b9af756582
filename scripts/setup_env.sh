#!/usr/bin/env bash
# Find or make a Python environment and print the path of its interpreter.
#
#   scripts/setup_env.sh run    what training needs (requirements.txt)
#   scripts/setup_env.sh dev    and what the tests need (requirements-dev.txt)
#
# An environment that is active and lies within the ranges of pyproject.toml is used as it is. Otherwise .venv is made,
# and kept up to date with the requirement files. PYTHON=/path/to/python names the interpreter to look at first.
# Only the path goes to stdout, so `$(scripts/setup_env.sh run)` is a command; everything else goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minimum=3.10
venv=$PWD/.venv
kind=${1:-run}
case $kind in
    run) list=requirements.txt ;;
    dev) list=requirements-dev.txt ;;  # it includes the other
    *) echo "setup_env: unknown kind '$kind'; expected: run, dev" >&2; exit 2 ;;
esac

say() { echo "[setup] $*" >&2; }

version_of() {  # "3.11.7", or nothing where the command does not start
    "$1" -c 'import sys; sys.stdout.write("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

is_new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info < (${minimum/./, }))" 2>/dev/null
}

missing_in() {  # the requirements that this interpreter does not meet, on one line
    "$1" - "$kind" <<'EOF'
import operator, re, sys
from importlib import metadata

COMPARE = {">=": operator.ge, "<": operator.lt}

def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])

def is_met(requirement):
    name, ranges = re.match(r"([\w.-]+)(.*)", requirement).groups()
    try:
        found = numbers(metadata.version(name) or "0")
    except metadata.PackageNotFoundError:
        return False
    return all(COMPARE[sign](found, numbers(bound)) for sign, bound in re.findall(r"([<>=]+)([\w.]+)", ranges))

with open("pyproject.toml", encoding="utf-8") as file:
    project = file.read()
lists = ["dependencies", "dev"] if sys.argv[1] == "dev" else ["dependencies"]
blocks = [re.search(r"^%s = \[(.*?)^\]" % name, project, re.S | re.M).group(1) for name in lists]
print(", ".join(entry for entry in re.findall(r'"(.+?)"', "".join(blocks)) if not is_met(entry)))
EOF
}

# 1. An environment that is active already.
active=()
[ -n "${PYTHON:-}" ] && active+=("$PYTHON")
[ -n "${VIRTUAL_ENV:-}" ] && active+=("$VIRTUAL_ENV/bin/python")
[ -n "${CONDA_PREFIX:-}" ] && active+=("$CONDA_PREFIX/bin/python")
active+=(python3 python)
for candidate in "${active[@]}"; do
    path=$(command -v "$candidate" || true)
    if [ -z "$path" ] || [ "$(dirname "$path")" -ef "$venv/bin" ] || ! is_new_enough "$path"; then continue; fi
    missing=$(missing_in "$path")
    if [ -z "$missing" ]; then
        say "using $path (Python $(version_of "$path")): it has all that is needed"
        echo "$path"
        exit 0
    fi
    case $candidate:$missing in
        python*:*torch*) ;;  # a Python that nobody prepared for this needs no word
        *) say "not using $path: it lacks $missing" ;;
    esac
done

# 2. Our own .venv: made once.
if [ ! -e "$venv" ]; then
    base='' found=''
    for candidate in "${active[@]}" python3.14 python3.13 python3.12 python3.11 python3.10; do
        version=$(version_of "$candidate")
        if [ -z "$version" ]; then continue; fi
        if is_new_enough "$candidate"; then base=$candidate; break; fi
        found+="$candidate is Python $version; "
    done
    if [ -z "$base" ]; then
        say "found ${found:-no Python; }Python $minimum or newer is needed."
        say "Install it (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python),"
        say "or name one that is there: make ... PYTHON=/path/to/python3"
        exit 1
    fi
    say "making .venv with $(command -v "$base") (Python $version)"
    if ! "$base" -m venv "$venv" >&2; then
        rm -rf "$venv"
        say "$base cannot make a virtual environment (see above)."
        say "Debian, Ubuntu: apt install python3-venv. Elsewhere: activate an environment of your own and run this again."
        exit 1
    fi
elif ! is_new_enough "$venv/bin/python"; then
    version=$(version_of "$venv/bin/python")
    say "found .venv with Python ${version:-that does not start}; $minimum or newer is needed."
    say "Remove it (rm -rf .venv) and run this again: a new one is made."
    exit 1
fi

# 3. Filled once, and again when a requirement file has changed.
python=$venv/bin/python
stamp() { cat requirements.txt "$1" | cksum; }
if [ "$(cat "$venv/.installed-$kind" 2>/dev/null || true)" != "$(stamp "$list")" ]; then
    say "installing $list into .venv: a few minutes the first time"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >&2
    if ! "$python" -m pip install --no-input --disable-pip-version-check -r "$list" \
        | { grep -v '^Requirement already satisfied' || true; } >&2; then
        say "the installation did not finish (see above). What is there is kept: run this again to go on."
        exit 1
    fi
    stamp requirements.txt >"$venv/.installed-run"
    stamp "$list" >"$venv/.installed-$kind"
    say "done. For a shell of your own: source .venv/bin/activate"
fi
echo "$python"
