#!/bin/sh
# guests/debian/network.sh: an address by DHCP for each network card, and an ear for the power button. With the word
# 'wait' it ends when the first card has an address, or after three seconds; else at once.
first=
for path in /sys/class/net/eth*; do
  [ -e "$path" ] || continue
  nic="${path##*/}"
  first="${first:-$nic}"
  ip link set "$nic" up
  udhcpc -f -R -t 5 -T 1 -A 5 -i "$nic" -s /etc/cellar/udhcpc.sh >/dev/null 2>&1 &
done
acpid -c /etc/cellar/acpi -l /dev/null 2>/dev/null
if [ "$1" = wait ] && [ -n "$first" ]; then
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    ip -4 addr show dev "$first" | grep -q inet && break
    sleep 0.1
  done
fi
true
