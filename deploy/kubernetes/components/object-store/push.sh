#!/bin/sh
# Adds the versions in MODELS to the bucket REMOTE: files first, manifests last, as a version counts
# as there once its manifest is. What is there already is never changed.
set -eu
: "${REMOTE:?}" "${MODELS:=/models}"

# What is hidden is being written, or is not to be served.
push() {
  rclone copy --immutable --filter '- /.*/**' --filter '- /*/.*' --filter '- /*/.*/**' "$@" \
    "$MODELS" "$REMOTE"
}

push --filter '- /*/*/manifest.json'
push --filter '+ /*/*/manifest.json' --filter '- *'
