#!/bin/sh
# Makes MODELS what the bucket REMOTE holds, whole versions only: pull.sh once, or every N seconds.
#
# A version is in the bucket once its manifest is, which push.sh uploads last. It is copied to a
# hidden place, which no server looks at, and appears by one rename. What is gone from the bucket,
# as after a rollback, goes here too; but an empty bucket is an outage, and nothing is deleted.
# Of an upload that was cut off, the number counts as taken: training goes on with the next.
set -eu
: "${REMOTE:?}" "${MODELS:=/models}" "${SCRATCH:=/tmp}"

fetch() { # MODEL/VERSION
  rm -rf "$MODELS/.staging-pull"
  rclone copy "$REMOTE/$1" "$MODELS/.staging-pull" &&
    mkdir -p "$MODELS/${1%/*}" &&
    mv "$MODELS/.staging-pull" "$MODELS/$1" &&
    echo "pulled $1"
}

discard() { # MODEL/VERSION
  rm -rf "$MODELS/.pruned-pull"
  mv "$MODELS/$1" "$MODELS/.pruned-pull" &&
    rm -rf "$MODELS/.pruned-pull" &&
    echo "discarded $1"
}

reserve() { # what is half there, by the name of one that is half deleted
  rm -rf "$MODELS"/*/.pruned-[1-9]*
  sed 's|/[^/]*$||' "$SCRATCH/files" | sort -u | while IFS= read -r version; do
    case $version in
    */[1-9]*)
      grep -qxF "$version/manifest.json" "$SCRATCH/remote" ||
        mkdir -p "$MODELS/${version%/*}/.pruned-${version##*/}" || exit
      ;;
    esac
  done
}

pull() {
  rclone lsf --recursive --files-only --include '/*/*/*' "$REMOTE" >"$SCRATCH/files" || return
  grep '/manifest\.json$' "$SCRATCH/files" >"$SCRATCH/remote" || :
  reserve || return
  if ! [ -s "$SCRATCH/remote" ]; then
    echo "$REMOTE holds no version: what is here is kept" >&2
    return 0
  fi
  while IFS= read -r manifest; do
    version=${manifest%/manifest.json}
    # .withdrawn-N too: its number is taken, and training must know.
    [ -e "$MODELS/$version" ] || fetch "$version" || return
  done <"$SCRATCH/remote"
  for directory in "$MODELS"/*/[1-9]* "$MODELS"/*/.withdrawn-*; do
    version=${directory#"$MODELS/"}
    [ ! -d "$directory" ] || grep -qxF "$version/manifest.json" "$SCRATCH/remote" \
      || discard "$version"
  done
}

case ${1:-} in
once) pull ;;
*[!0-9]* | '')
  echo "usage: pull.sh once|SECONDS" >&2
  exit 2
  ;;
*)
  trap 'exit 0' TERM INT
  while :; do
    pull || echo "could not pull; tried again in $1 s" >&2
    sleep "$1" &
    wait $!
  done
  ;;
esac
