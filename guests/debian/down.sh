#!/run/cellar/busybox sh
# guests/debian/down.sh: ends what runs in the guest, as process 1's last act but one; written data goes to the disks.
#
# Programs are asked, and waited for: five seconds at most. Who ignores that, as a shell at a prompt does, isn't waited
# for. Where the agent has told how the guest is to go down (the file 'stop'), it goes at once: busybox's init would wait
# two seconds more, for nobody.
kill -TERM -1
# All but process 1, this one, and grep in a process of its own. Signal 15 is bit 14.
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40
do
  set -- $(grep -L '^SigIgn:.*[4-7c-f]...$' /proc/[0-9]*/status 2>/dev/null)
  [ "$#" -le 3 ] && break
  sleep 0.1
done
kill -KILL -1
sync
# What holds no data stays: it is needed for the rest.
umount -a -r -t noproc,sysfs,devtmpfs,devpts,tmpfs 2>/dev/null
read -r how 2>/dev/null </run/cellar/stop
case "$how" in poweroff | reboot) exec "$how" -f ;; esac
