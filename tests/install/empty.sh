#!/usr/bin/env bash
# The package as a stranger gets it: a wheel, a really empty environment, an empty folder. What README's first blocks say
# is typed there, with pip and then with uv, up to the demo, which tests/cli/test_embedded.py runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$PWD
"${PYTHON:-python3}" -m venv "$scratch/tools"
"$scratch/tools/bin/pip" install --quiet --disable-pip-version-check build uv
"$scratch/tools/bin/python" -m build --wheel --outdir "$scratch/dist" . >/dev/null
"${PYTHON:-python3}" -m venv "$scratch/pip"
"$scratch/pip/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt "$scratch"/dist/*.whl
"$scratch/tools/bin/uv" venv --quiet --python "${PYTHON:-python3}" "$scratch/uv"
"$scratch/tools/bin/uv" pip install --quiet --python "$scratch/uv" --constraint constraints.txt "$scratch"/dist/*.whl
mkdir "$scratch/empty" && cd "$scratch/empty"
printf '{"instruction": "say %s", "response": "%s"}\n' a a b b c c d d > ward-a.jsonl
cp ward-a.jsonl ward-b.jsonl
for tool in pip uv; do
	export PATH="$scratch/$tool/bin:$PATH"
	hash -r
	fedsrd --version
	fedsrd recipes list >/dev/null
	rm -rf mine.toml runs
	fedsrd init mine.toml --model embedded:smollm2-135m --site ward-a=ward-a.jsonl --site ward-b=ward-b.jsonl --cpu --yes >/dev/null
	fedsrd check mine.toml >/dev/null
	fedsrd plan mine.toml >/dev/null
	fedsrd run mine.toml --set rounds=1 --set training.steps=1 --set training.batch_size=1 --quiet
	ls runs/*/adapter/adapter_model.safetensors
done
! python -c "import sys; sys.exit(not any('$root' in path for path in sys.path))" || { echo "the repository is on the path"; exit 1; }
echo "installed and used, with pip and with uv"
