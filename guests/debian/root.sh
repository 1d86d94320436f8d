#!/bin/busybox sh
# guests/debian/root.sh: goes from the initramfs to a root file system on disks, as init's last act.
#
# The lower one is a disk that is never written: squashfs or ext4. Changes go to the upper one, ext4 on another disk, or
# to RAM. overlayfs makes one of the two. Our own tools stay at hand in /run/cellar, whatever the root has: busybox, the
# agent, the scripts.
fail() {
  echo "cellar: $*" >/dev/kmsg
  echo "cellar: $*"
  poweroff -f
}

# The disk with this serial number: virtio tells it in sysfs. Disks may come a moment later than their driver.
disk() {
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    for path in /sys/block/*/serial; do
      [ -e "$path" ] && [ "$(cat "$path")" = "$1" ] && { path="${path%/serial}"; echo "/dev/${path##*/}"; return; }
    done
    sleep 0.1
  done
  return 1
}

modprobe -a overlay squashfs 2>/dev/null
mkdir -p /lower /upper /root.new
lower="$(disk "$1")" || fail "there is no disk with the serial number $1"
mount -r -t squashfs "$lower" /lower 2>/dev/null || mount -r -t ext4 "$lower" /lower ||
  fail "there is no root file system on $lower"
if [ -n "$2" ]; then
  upper="$(disk "$2")" || fail "there is no disk with the serial number $2"
  mount -t ext4 -o noatime "$upper" /upper || fail "there is no file system on $upper"
else
  mount -t tmpfs -o mode=0755 upper /upper
fi
mkdir -p /upper/upper /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work root /root.new ||
  fail "the root file system can't be joined of $1 and ${2:-RAM}"

mkdir -p /run/cellar /root.new/dev /root.new/proc /root.new/sys /root.new/run /root.new/tmp /root.new/etc
rm -f /run/cellar/busybox
cp /bin/busybox /run/cellar/busybox
cp -a /etc/cellar /run/cellar/etc
mkdir /run/cellar/bin
/run/cellar/busybox --install -s /run/cellar/bin
[ -e /root.new/etc/cellar ] || ln -s /run/cellar/etc /root.new/etc/cellar
mkdir -p /root.new/lib/modules && mount -t tmpfs modules /root.new/lib/modules 2>/dev/null &&
  cp -a /lib/modules/* /root.new/lib/modules/
for name in dev proc sys run tmp; do mount -o move "/$name" "/root.new/$name"; done
exec switch_root /root.new /run/cellar/busybox sh /run/cellar/etc/main.sh
