#!/bin/bash
# PID 1 of a guest (guest.go): runs what is laid into the folder $1/jobs, one job after the other,
# until $1/halt is there. The machine's root file system is the guest's, and cannot be written to;
# $1 alone is mounted to be written.
dir=$1
export PATH=$dir/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
mount -t hostfs none "$dir" -o "$dir"
echo "$dir/bin/modprobe" >/proc/sys/kernel/modprobe
ip link set lo up
ip link set vec0 up
touch "$dir/ready"

# A read that times out is a pause without a fork, which costs a guest most.
mkfifo /run/tick
exec 8<>/run/tick
shopt -s nullglob
while [[ ! -e $dir/halt ]]; do
    for job in "$dir"/jobs/*.sh; do
        base=${job%.sh}
        bash "$job" >"$base.out" 2>&1 </dev/null 8<&-
        echo $? >"$base.new"
        mv "$job" "$base.done"
        mv "$base.new" "$base.rc"
    done
    read -r -t 0.02 -u 8 _
done
sync
echo o >/proc/sysrq-trigger
