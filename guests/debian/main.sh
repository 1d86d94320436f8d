#!/run/cellar/busybox sh
# guests/debian/main.sh: the first process of a machine whose root file system is on disks, such as a container image's.
#
# It starts the network and the agent and runs the image's program (entry.sh, written when the image was made) on the
# console; when that ends, the machine goes off. A root file system with an init of its own, and no program, gets that.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/cellar/bin
b=/run/cellar/busybox
# What DHCP tells goes through a link there, should it lead nowhere.
[ -L /etc/resolv.conf ] && [ ! -e /etc/resolv.conf ] && rm -f /etc/resolv.conf
PATH=/run/cellar/bin:$PATH $b sh /run/cellar/etc/network.sh wait
$b acpid -c /run/cellar/etc/acpi -l /dev/null 2>/dev/null
# At a prompt: names of packages' programs before busybox's.
[ -e /run/cellar/etc/names.sh ] && export ENV=/run/cellar/etc/names.sh
[ -x /run/cellar/etc/agent ] && { while :; do /run/cellar/etc/agent; $b sleep 1; done & }
if [ ! -e /run/cellar/etc/entry.sh ]; then
  for init in /sbin/init /lib/systemd/systemd; do [ -x "$init" ] && exec "$init"; done
  set -- $b sh
else
  set -- $b sh /run/cellar/etc/entry.sh
fi
# poweroff and reboot tell the first process so (busybox).
trap 'off="poweroff -f"' USR2 USR1
trap 'off="reboot -f"' TERM
off=
$b setsid $b cttyhack "$@" </dev/console >/dev/console 2>&1 &
entry=$!
while [ -z "$off" ]; do
  wait "$entry"
  status=$?
  # A signal ends the wait, too: the program's own end is when it is gone.
  kill -0 "$entry" 2>/dev/null || break
done
[ -z "$off" ] && echo "cellar: the program ended with status $status" >/dev/kmsg
$b sh /run/cellar/etc/down.sh
$b ${off:-poweroff -f}
