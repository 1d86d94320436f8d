#!/run/cellar/busybox sh
# guests/debian/udhcpc.sh: puts to use what DHCP told: address, routes, name servers, MTU and the machine's name.
# udhcpc calls it with 'deconfig', 'bound', 'renew', 'nak' or 'leasefail', and the lease in variables.
case "$1" in
  deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
  bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    metric="${interface##*[a-z]}"
    for gateway in $router; do
      ip route replace default via "$gateway" dev "$interface" metric "$((${metric:-0} + 1))"
    done
    if [ -n "$dns" ]; then
      {
        [ -n "$search$domain" ] && echo "search ${search:-$domain}"
        for server in $dns; do echo "nameserver $server"; done
      } >/run/resolv.conf.new
      # Root file systems of others have a file or a link there.
      cat /run/resolv.conf.new >/etc/resolv.conf 2>/dev/null
    fi
    [ -n "$hostname" ] && hostname "$hostname"
    : >/run/cellar/network
    ;;
esac
