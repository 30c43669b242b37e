#!/bin/sh
# sshd.sh DIRECTORY: OpenSSH's server, for the tests. It is unpacked there and not installed, which would start it for everybody; its
# client is installed where there is none. It is done once; whoever comes meanwhile waits.
set -eu
mkdir -p "$1"
cd "$1"
exec 9> lock
flock 9
[ ! -e ready ] || exit 0
export DEBIAN_FRONTEND=noninteractive
get() { apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }
need=
command -v ssh > /dev/null && command -v ssh-keygen > /dev/null || need=openssh-client
for attempt in 1 2 3 4 5 6; do
    # Without lists of packages, as on a fresh machine, they are taken first.
    if get download openssh-server libwrap0 && { [ -z "$need" ] || get install -y --no-install-recommends "$need"; }; then
        break
    fi
    [ "$attempt" -lt 6 ]
    get update || sleep 10
done
for deb in *.deb; do dpkg -x "$deb" .; done
# It wants a user of its own, as whom it talks to who is not known yet.
getent passwd sshd > /dev/null || useradd --system --no-create-home --home-dir /run/sshd --shell /usr/sbin/nologin sshd
rm -- *.deb
touch ready
