#!/usr/bin/env bash
# Debian's libreswan, unpacked into a folder of its own for the interop tests, with what it needs and
# this machine lacks. It is not installed: it conflicts with strongSwan, and would want to be started.
# As root; seconds, nothing when the folder is there. Prints the folder's path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=${1:-$here/../../build/tools/.libreswan} # go ignores folders with a dot
if [[ -e $tree/.complete ]]; then
    echo "$tree"
    exit 0
fi
needed() { apt-get install -s --no-install-recommends libreswan 2>/dev/null | awk '/^Inst/ { print $2 }'; }
[[ -n $(needed) ]] || apt-get update -qq >&2
mapfile -t packages < <(needed)
((${#packages[@]})) || { echo "libreswan: no package of that name is known: look at /etc/apt/sources.list" >&2; exit 1; }
rm -rf "$tree"
mkdir -p "$tree/.debs"
tree=$(cd "$tree" && pwd)
(
    cd "$tree/.debs"
    # The lists may name versions that are gone from the mirror.
    if ! apt-get download -qq "${packages[@]}" >/dev/null 2>&1; then
        apt-get update -qq >&2
        apt-get download -qq "${packages[@]}" >&2
    fi
)
for deb in "$tree"/.debs/*.deb; do dpkg-deb -x "$deb" "$tree"; done
rm -rf "$tree/.debs"
# It is laid over a root in which these are links into /usr.
for d in bin sbin lib lib64; do
    [[ -d $tree/$d && ! -L $tree/$d ]] || continue
    mkdir -p "$tree/usr/$d"
    cp -a "$tree/$d/." "$tree/usr/$d/"
    rm -rf "${tree:?}/$d"
done
touch "$tree/.complete"
echo "$tree"
