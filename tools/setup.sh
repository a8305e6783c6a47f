#!/usr/bin/env bash
# Makes one environment: `full` (training, tests, everything) or `launcher` (launch, status, prepare; no torch).
# Called by the Makefile with PYTHON and VENV set. Prints a line a step; pip's own output goes to a log that is shown if it fails.
# Asks nothing, and writes nothing outside VENV but pip's egg-info in the checkout. Runs under macOS's bash 3.2 too.
set -euo pipefail

kind=$1
: "${PYTHON:?}" "${VENV:?}"
name=$([ "$kind" = full ] && echo setup || echo launcher)
start=$(date +%s)
say() { printf '%s: %s\n' "$name" "$*"; }
die() { say "$*" >&2; exit 1; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v "$PYTHON" >/dev/null 2>&1 || die "there is no $PYTHON here; 3.11 or newer is needed. Name one: make $name PYTHON=/path/to/python3.11"
PYTHON=$(command -v "$PYTHON")

# A user's own settings must not redirect the installation (a pip.conf with `user = true` fails inside an environment).
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONNOUSERSITE=1

if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
    die "$VENV exists and is not an environment. Move it away, or name another place (VENV=..., LAUNCHER_VENV=...)"
fi

# make goes by dates: a fresh clone would quietly point somebody's environment at itself.
served=$(sed -n 's/.*"url": "file:\/\/\([^"]*\)".*/\1/p' "$VENV"/lib/python*/site-packages/hpc_seresnet-*.dist-info/direct_url.json 2>/dev/null | head -n 1 || true)
if [ -n "$served" ] && [ -d "$served" ] && [ "$(cd "$served" && pwd -P)" != "$(pwd -P)" ]; then
    die "$VENV serves the checkout in $served. Use it there, or name a place of this one's own: make $name VENV=/path"
fi

# The launcher is made afresh each time: it takes seconds, and pip is gone from it. An interrupted or broken one is made afresh too.
if [ "$kind" = launcher ] || ! "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
    "$PYTHON" tools/preflight.py "$kind" "$VENV" || exit 1
    say "making $VENV with $PYTHON ($("$PYTHON" -c 'import platform; print(platform.python_version())'))"
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV" >/dev/null || die "$PYTHON -m venv $VENV failed"
fi

log=$VENV/$name.log
# pip unpacks gigabytes into TMPDIR, and fills HOME with a cache of them; a login node's /tmp and a cluster's HOME hold neither.
export TMPDIR=$PWD/$VENV/tmp
case $VENV in /*) TMPDIR=$VENV/tmp ;; esac
mkdir -p "$TMPDIR"
cache=$([ -n "${PIP_CACHE_DIR:-}" ] || echo --no-cache-dir)

install() {
    # shellcheck disable=SC2086
    "$VENV/bin/python" -m pip install $cache --progress-bar off -c constraints.txt "$@" >"$log" 2>&1 && return
    tail -n 25 "$log" >&2
    grep -qiE 'quota exceeded|no space left' "$log" && die "the disk or a quota is full; name another place: make $name VENV=/path/with/room"
    grep -qiE 'temporary failure in name|network is unreachable|failed to establish|no matching distribution' "$log" &&
        die "pip found no package index, or not these versions; run this where there is a network (log: $log)"
    die "pip failed; the log is $log. Run make $name again to go on"
}

# numpy's own tests (22 MB) and pip have no work to do on a login node; byte code of what launching imports makes it start in time.
slim() {
    local site
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    find "$site/numpy" -type d -name tests -prune -exec rm -rf {} +
    "$VENV/bin/python" -m pip uninstall --quiet --yes setuptools pip >>"$log" 2>&1 || die "pip could not remove itself; the log is $log"
    "$VENV/bin/python" -m compileall -q -x 'lexers|f2py|distutils|numpy/typing' "$site" >>"$log" 2>&1 || true
}

if [ "$kind" = full ]; then
    say "installing the pinned packages: 3 GB to fetch, some minutes (log: $log)"
    install -e '.[dev]'
else
    say "installing the base packages: 30 MB to fetch (log: $log)"
    install --no-compile -e .
    slim
fi
rm -rf "$TMPDIR"

megabytes=$(du -sk "$VENV" | awk '{ printf "%d", $1 / 1024 }')
inodes=$(find "$VENV" | wc -l | tr -d ' ')
say "ready in $(($(date +%s) - start)) s: $VENV, $megabytes MB, $inodes inodes"
if [ "$kind" = launcher ] && { [ "$megabytes" -gt 100 ] || [ "$inodes" -gt 6000 ]; }; then
    die "that is over the launcher's limit of 100 MB and 6,000 inodes; a package in setup.cfg's install_requires has grown"
fi
touch "$VENV/.ready"
