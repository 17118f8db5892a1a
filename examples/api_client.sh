#!/bin/sh
# Ask a Cervicyte server about images, with curl. For research use only.
#
#   sh examples/api_client.sh http://127.0.0.1:7860 cell.png another.png
#
# Prints the answer as JSON. If the server asks for a token, put it into CERVICYTE_TOKEN.
set -eu
server=$1
shift
for image in "$@"; do
  set -- "$@" --form "images=@\"$image\""
  shift
done
# The token goes in by standard input: a command line can be read by others of the machine.
printf 'header = "Authorization: Bearer %s"\n' "${CERVICYTE_TOKEN:-none}" |
  curl --silent --show-error --fail-with-body --retry 5 --config - "$@" "$server/api/v1/predict"
