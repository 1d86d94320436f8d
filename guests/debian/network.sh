#!/run/cellar/busybox sh
# guests/debian/network.sh: an address by DHCP for each network card. With the word 'wait' it ends when the first has
# one, or after three seconds; else at once. The file /run/cellar/network says that there is one, or no card.
first=
for path in /sys/class/net/eth*; do
  [ -e "$path" ] || continue
  nic="${path##*/}"
  first="${first:-$nic}"
  udhcpc -f -R -t 5 -T 1 -A 5 -i "$nic" -s /etc/cellar/udhcpc.sh >/dev/null 2>&1 &
done
[ -z "$first" ] && : >/run/cellar/network
if [ "$1" = wait ]; then
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    [ -e /run/cellar/network ] && break
    sleep 0.1
  done
fi
true
