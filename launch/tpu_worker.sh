#!/usr/bin/env bash
# tpu_pod.sh and tpu_gce.sh run this on each worker, in the folder that they copied there (the parent of
# launch/). The training continues when the ssh connection that started it ends; the folder worker/
# contains its process number, its log and, once it has ended, its exit status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask o-w # not every user may change what this writes

GRACE_SECONDS=${JAXCLS_GRACE_SECONDS:-120} # from SIGTERM to SIGKILL
mkdir -p worker

is_running() {
  local pid
  pid=$(cat worker/pid 2>/dev/null) || return 1
  # After a reboot another process may have this number.
  grep -qsF tpu_worker.sh "/proc/$pid/cmdline"
}

# install SOURCE: a URL that pip can install from, or "." for this folder.
install() {
  local source=$1
  case $source in
    .) source=file://$PWD ;;
    wheels/*) source=file://$PWD/$source ;;
  esac
  export PATH=$HOME/.local/bin:$PATH
  # Ubuntu 24.04 lets pip install for a user only with this variable, and some images have no pip.
  command -v uv >/dev/null ||
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv ||
    curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -d .venv ]] || uv venv --quiet --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python --reinstall-package jaxcls "jaxcls[tpu,gcs] @ $source"
}

# stage gs://BUCKET/FOLDER: copies the folder to data/; a second time, only the changes.
stage() {
  mkdir -p data
  gcloud storage rsync --recursive "$1" data
}

# start ARGUMENT ...: starts `jaxcls train ARGUMENT ...`, unless it is running already.
start() {
  if is_running; then
    echo "tpu_worker: the training is already running on $(hostname); attaching to it"
    return
  fi
  [[ ! -e worker/log.txt ]] || mv worker/log.txt "worker/log-$(date +%Y%m%d-%H%M%S).txt"
  rm -f worker/status worker/pid
  : >worker/log.txt
  setsid nohup bash launch/tpu_worker.sh supervise "$@" >>worker/log.txt 2>&1 </dev/null &
  # From then on `stop` reaches the training.
  until [[ -s worker/pid ]]; do
    kill -0 $! 2>/dev/null || [[ -s worker/pid ]] || { cat worker/log.txt >&2 && exit 1; }
    sleep 0.05
  done
  echo "tpu_worker: started the training on $(hostname)"
}

supervise() {
  local status=0
  trap : TERM INT HUP # the training gets the signal too; this shell stays to write its exit status
  echo $$ >worker/pid
  .venv/bin/jaxcls train "$@" || status=$?
  echo "$status" >worker/status.new
  mv worker/status.new worker/status
}

# One line, for the launcher: running, exited STATUS, or absent (nothing was started on this machine).
status() {
  local state=absent
  if is_running; then
    state=running
  elif [[ -e worker/status ]]; then
    state="exited $(cat worker/status)"
  elif [[ -e worker/pid ]]; then
    state="exited 137" # killed together with its supervisor, for example because memory was full
  fi
  echo "jaxcls-status $(hostname) $state"
}

# logs LINE: prints the log from that line on until the training has ended.
logs() {
  local pid
  pid=$(cat worker/pid 2>/dev/null) || return 0
  tail --lines="+$1" --follow --sleep-interval=0.2 --pid="$pid" worker/log.txt
}

# Asks the training to save and exit; after GRACE_SECONDS it is killed.
stop() {
  is_running || return 0
  local pid deadline
  pid=$(cat worker/pid)
  deadline=$((SECONDS + GRACE_SECONDS))
  kill -TERM -- "-$pid"
  while is_running && ((SECONDS < deadline)); do sleep 0.2; done
  if is_running; then
    echo "tpu_worker: the training on $(hostname) did not stop within $GRACE_SECONDS s; killing it" >&2
    kill -KILL -- "-$pid"
  fi
}

"$@"
