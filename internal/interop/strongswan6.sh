#!/usr/bin/env bash
# A strongSwan with ML-KEM (6.0 or later) of Debian's development suite, in a tree of its own, for
# the interop tests: Debian 12 has 5.9.8, which knows no key exchange but the first. As root; half a
# minute and 160 MB, nothing when the tree is there. Prints the tree's path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=${1:-$here/../../build/tools/.strongswan6} # go ignores folders with a dot
if [[ -e $tree/.complete ]]; then
    echo "$tree"
    exit 0
fi
command -v mmdebstrap >/dev/null || { echo "strongswan6: mmdebstrap is missing: apt-get install mmdebstrap" >&2; exit 1; }
# the mirror that this machine uses for its own packages
mirror() { apt-get indextargets --format '$(REPO_URI)' | grep -v security | sort -u | sed -n 1p; }
[[ -n $(mirror) ]] || apt-get update -qq >&2
[[ -n $(mirror) ]] || { echo "strongswan6: no Debian mirror is known: look at /etc/apt/sources.list" >&2; exit 1; }
# The development suite has the newest; when it cannot be installed for the moment, Debian 13's
# 6.0.1 does as well. A Release file may be older than this machine's clock allows; its signature is
# checked.
for suite in sid trixie none; do
    [[ $suite != none ]] || { echo "strongswan6: neither of Debian's suites could be installed from $(mirror)" >&2; exit 1; }
    rm -rf "$tree"
    mkdir -p "$tree"
    mmdebstrap --mode=root --variant=apt --aptopt='Acquire::Check-Valid-Until "false"' \
        --include=charon-systemd,strongswan-swanctl,libstrongswan-standard-plugins,libstrongswan-extra-plugins,libcharon-extra-plugins \
        "$suite" "$tree" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >&2 && break
done
mkdir -p "$tree/dev/net"
[[ -e $tree/dev/net/tun ]] || mknod -m 666 "$tree/dev/net/tun" c 10 200 # for ESP in user space
touch "$tree/.complete"
echo "$tree"
