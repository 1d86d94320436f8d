#!/bin/busybox sh
# tests/machine/nested_init.sh: /init of the nested host: mounts its disk, then runs what comes over a virtio-serial port.
#
# Port "run": requests come in, stdout goes out. Port "err": KILL comes in, stderr goes out. A request is a line
# `RUN nonce blocks npt`, then that many blocks of 64 KiB: a tar archive of changed files, with the command in it as
# /nested/job.sh. On both ports what the command writes stands between `\036nonce BEGIN` and `\036nonce END status`.
# Kernel messages go to the serial port, so nothing mixes.
/bin/busybox mkdir -p /proc /sys /dev /disk /upper /new /bin
/bin/busybox --install -s /bin
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=75% tmpfs /upper
while read -r module; do insmod "/modules/$module" || echo "init: no $module"; done </modules/order
mkdir /upper/u /upper/w
mount -t ext4 -o ro,noatime /dev/vda /disk
mount -t overlay -o "lowerdir=/disk,upperdir=/upper/u,workdir=/upper/w" overlay /new
cd /new
for folder in proc sys dev; do mkdir -p $folder; mount --rbind /$folder $folder; done
mkdir -p dev/pts dev/shm tmp run nested var/tmp
mount -t devpts -o ptmxmode=666 pts dev/pts
mount -t tmpfs shm dev/shm
# A checkout in /tmp stays in sight.
mkdir /checkouts && mount --bind tmp /checkouts
mount -t tmpfs -o mode=1777 tmp tmp
for folder in /checkouts/*/; do
  [ -d "$folder" ] && mkdir "tmp/${folder#/checkouts/}" && mount --bind "$folder" "tmp/${folder#/checkouts/}"
done
mount -t tmpfs run run
mount -t cgroup2 none sys/fs/cgroup
ip link set lo up
hostname nested
ln -sf /proc/self/fd dev/fd
npt=1
idle_max=$(sed -n 's/.*nested\.idle=\([0-9]*\).*/\1/p' /proc/cmdline)
mkfifo /never
exec 5<>/never

for port in /sys/class/virtio-ports/*; do
  case $(cat "$port/name") in
    run) exec 3<>"/dev/${port##*/}" ;;
    err) exec 4<>"/dev/${port##*/}" ;;
  esac
done

# Whoever starts anew ends what still runs for somebody who has gone.
kill_job() {
  read -r job </job && kill -9 "-$job" 2>/dev/null
}
: >/job
alone=0
while :; do
  # Nobody is there: such a port is at its end, for now. A job isn't left alone for long.
  if ! read -r verb nonce <&4; then
    read -r -t 0.1 verb <&5
    alone=$((alone + 1))
    [ $alone -gt 50 ] && alone=0 && kill_job
    continue
  fi
  alone=0
  case $verb in
    KILL) kill_job ;;
    HELLO) echo "HELLO $nonce" >&4 ;;
  esac
done 3>&- &

# A host that nobody has wanted for a while goes by itself.
idle=0
while :; do
  if ! read -r verb nonce blocks wanted <&3; then
    read -r -t 0.1 verb <&5
    idle=$((idle + 1))
    [ $idle -gt "${idle_max:-36000}" ] && reboot -f
    continue
  fi
  idle=0
  case $verb in
    HELLO) echo "HELLO $nonce" >&3 ;;
    RUN)
      dd bs=65536 count="$blocks" iflag=fullblock <&3 2>/dev/null | tar xof - -C /new
      if [ "$wanted" != "$npt" ]; then
        rmmod kvm_amd && insmod /modules/kvm-amd.ko npt="$wanted" && npt=$wanted
      fi
      printf '\036%s BEGIN\n' "$nonce" >&3
      printf '\036%s BEGIN\n' "$nonce" >&4
      setsid chroot /new /bin/sh /nested/job.sh </dev/null >&3 2>&4 3>&- 4>&- 5>&- &
      echo $! >/job
      wait $!
      status=$?
      kill_job
      : >/job
      printf '\036%s END %s\n' "$nonce" $status >&3
      printf '\036%s END %s\n' "$nonce" $status >&4
      ;;
  esac
done
